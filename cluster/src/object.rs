//! Any object of the kinds that are watched, as far as we read it.

use std::borrow::Cow;

use distributary_model::ObjectKind;
use serde::de::{Deserialize, Deserializer, Error as _};

use crate::lean::{Metadata, NoLabels, or_default};
use crate::meta::Meta;
use crate::{EndpointSlice, Node, ObjectKey, Service, ServiceCidr, node, service, slice};

/// An object of the Kubernetes API, converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// core/v1 Service
    Service(Service),
    /// discovery.k8s.io/v1 EndpointSlice
    EndpointSlice(EndpointSlice),
    /// core/v1 Node
    Node(Node),
    /// networking.k8s.io/v1 ServiceCIDR
    ServiceCidr(ServiceCidr),
}

/// An object that is not of the shape that its kind has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} cannot be read: {why}", .key.as_ref().map_or(Cow::Borrowed("an object"), |key| key.to_string().into()))]
pub struct Unreadable {
    /// Names it, where at least that could be read.
    pub key: Option<ObjectKey>,
    /// metadata.resourceVersion where that is a number, else 0.
    pub resource_version: u64,
    /// What could not be read.
    pub why: String,
}

impl Object {
    /// Reads an object of a kind that is known; its own `kind` is not looked at.
    ///
    /// # Errors
    /// When a field that is read is of another type, or the object has no name.
    pub fn read<'de, D: Deserializer<'de>>(kind: ObjectKind, from: D) -> Result<Self, D::Error> {
        let unnamed = || D::Error::custom("metadata.name is missing");
        match kind {
            ObjectKind::Service => {
                Service::convert(service::Lean::deserialize(from)?).map(Self::Service).ok_or_else(unnamed)
            }
            ObjectKind::EndpointSlice => {
                let lean = slice::Lean::deserialize(from)?;
                EndpointSlice::convert(lean).map(Self::EndpointSlice).ok_or_else(unnamed)
            }
            ObjectKind::Node => {
                Node::convert(node::LeanNode::deserialize(from)?).map(Self::Node).ok_or_else(unnamed)
            }
            ObjectKind::ServiceCidr => {
                let lean = node::LeanServiceCidr::deserialize(from)?;
                ServiceCidr::convert(lean).map(Self::ServiceCidr).ok_or_else(unnamed)
            }
        }
    }

    /// Reads an object from JSON.
    ///
    /// # Errors
    /// When it is not of the shape that its kind has; then at least its name is sought.
    pub fn from_json(kind: ObjectKind, json: &str) -> Result<Self, Unreadable> {
        Self::read(kind, &mut serde_json::Deserializer::from_str(json)).map_err(|e| {
            let (key, resource_version) = Self::key_from_json(kind, json).unzip();
            Unreadable { key, resource_version: resource_version.unwrap_or(0), why: e.to_string() }
        })
    }

    /// Only the key and resourceVersion of an object in JSON, which is all that a deletion needs.
    pub fn key_from_json(kind: ObjectKind, json: &str) -> Option<(ObjectKey, u64)> {
        #[derive(serde::Deserialize)]
        struct Lean {
            #[serde(default, deserialize_with = "or_default")]
            metadata: Metadata<NoLabels>,
        }
        let Lean { metadata } = serde_json::from_str(json).ok()?;
        metadata.key(kind).map(|key| (key, metadata.version()))
    }

    /// What every object has.
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Service(service) => &service.meta,
            Self::EndpointSlice(slice) => &slice.meta,
            Self::Node(node) => &node.meta,
            Self::ServiceCidr(cidr) => &cidr.meta,
        }
    }

    /// What every object has, to be changed.
    pub(crate) fn meta_mut(&mut self) -> &mut Meta {
        match self {
            Self::Service(service) => &mut service.meta,
            Self::EndpointSlice(slice) => &mut slice.meta,
            Self::Node(node) => &mut node.meta,
            Self::ServiceCidr(cidr) => &mut cidr.meta,
        }
    }

    /// Names it.
    pub fn key(&self) -> &ObjectKey {
        &self.meta().key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_not_read_cannot_spoil_an_object() {
        let json = r#"{"kind": 7, "metadata": {"name": "a", "namespace": "b", "resourceVersion": "12",
            "managedFields": "odd", "annotations": [1], "ownerReferences": {}},
            "spec": {"clusterIP": "10.0.0.1", "selector": 5, "ports": [{"port": 80, "targetPort": {}}]},
            "status": {"conditions": 3}}"#;
        let object = Object::from_json(ObjectKind::Service, json).unwrap();
        assert_eq!(object.key().to_string(), "Service b/a");
        assert_eq!((object.meta().resource_version, object.meta().problems.len()), (12, 0));
    }

    #[test]
    fn null_stands_for_nothing() {
        for (kind, json) in [
            (
                ObjectKind::Service,
                r#"{"metadata": {"name": "a", "labels": null}, "spec": null, "status": null}"#,
            ),
            (
                ObjectKind::Service,
                r#"{"metadata": {"name": "a"}, "spec": {"ports": null, "externalIPs": null}}"#,
            ),
            (ObjectKind::EndpointSlice, r#"{"metadata": {"name": "a"}, "endpoints": null, "ports": null}"#),
            (
                ObjectKind::EndpointSlice,
                r#"{"metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
                "endpoints": [{"addresses": null, "conditions": null, "hints": null}]}"#,
            ),
            (
                ObjectKind::Node,
                r#"{"metadata": {"name": "a"}, "spec": {"taints": null}, "status": {"addresses": null}}"#,
            ),
            (ObjectKind::ServiceCidr, r#"{"metadata": {"name": "a"}, "spec": {"cidrs": null}}"#),
        ] {
            Object::from_json(kind, json).unwrap();
        }
    }

    #[test]
    fn an_unreadable_object_is_still_named() {
        let json =
            r#"{"metadata": {"name": "a", "namespace": "b", "resourceVersion": "12"}, "spec": {"ports": 5}}"#;
        let error = Object::from_json(ObjectKind::Service, json).unwrap_err();
        assert_eq!(error.resource_version, 12);
        let message = error.to_string();
        assert!(message.starts_with("Service b/a cannot be read: invalid type: integer `5`"), "{message}");
        let error = Object::from_json(ObjectKind::Service, r#"{"metadata": {}}"#).unwrap_err();
        assert!(error.to_string().contains("metadata.name is missing"), "{error}");
        assert_eq!(error.key, None);
    }
}
