//! Pieces that the lean shapes of all kinds are made of: what is not named in them is skipped without a copy.

use std::fmt;
use std::marker::PhantomData;

use distributary_model::{Name, ObjectKind};
use serde::de::{self, Deserialize, Deserializer, Visitor};

use crate::ObjectKey;

/// A list, a struct or a value that is `null` is like one that is not there.
pub(crate) fn or_default<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: Deserialize<'de> + Default,
    D: Deserializer<'de>,
{
    Option::<T>::deserialize(from).map(Option::unwrap_or_default)
}

/// `metadata`, with the labels, and maybe annotations, that mean something to us.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata<L: Default, A: Default = de::IgnoredAny> {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) namespace: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) uid: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) resource_version: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) creation_timestamp: String,
    pub(crate) deletion_timestamp: Option<de::IgnoredAny>,
    #[serde(default, deserialize_with = "or_default", bound(deserialize = "L: Deserialize<'de> + Default"))]
    pub(crate) labels: L,
    #[serde(default, deserialize_with = "or_default", bound(deserialize = "A: Deserialize<'de> + Default"))]
    pub(crate) annotations: A,
}

impl<L: Default, A: Default> Metadata<L, A> {
    /// The object's key; `None` where it has no name.
    pub(crate) fn key(&self, kind: ObjectKind) -> Option<ObjectKey> {
        let namespace = match kind {
            ObjectKind::Node | ObjectKind::ServiceCidr => "",
            _ if self.namespace.is_empty() => "default",
            _ => &self.namespace,
        };
        (!self.name.is_empty()).then(|| ObjectKey {
            kind,
            namespace: Name::from(namespace),
            name: Name::from(&*self.name),
        })
    }

    /// As a number; 0 where it is none.
    pub(crate) fn version(&self) -> u64 {
        self.resource_version.parse().unwrap_or(0)
    }

    /// Unix seconds; 0 where nothing readable is said.
    pub(crate) fn created(&self) -> i64 {
        self.creation_timestamp.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_second)
    }
}

/// No label means anything.
#[derive(Debug, Default, serde::Deserialize)]
pub(crate) struct NoLabels {}

/// A text that is parsed where it lies; only what cannot be parsed is copied, to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Text<T> {
    Good(T),
    Bad(String),
}

/// What [`Text`] can hold.
pub(crate) trait Parse: Sized {
    fn parse(text: &str) -> Option<Self>;
}

impl Parse for std::net::IpAddr {
    fn parse(text: &str) -> Option<Self> {
        crate::address::ip(text)
    }
}

impl Parse for jiff::Timestamp {
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Parse for ipnet::IpNet {
    fn parse(text: &str) -> Option<Self> {
        crate::address::net(text.trim())
    }
}

impl<'de, T: Parse> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Read<T>(PhantomData<T>);
        impl<T: Parse> Visitor<'_> for Read<T> {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(T::parse(text).map_or_else(|| Text::Bad(text.to_owned()), Text::Good))
            }
        }
        from.deserialize_str(Read(PhantomData))
    }
}

/// A transport protocol's name; the API takes TCP where there is none.
pub(crate) fn protocol(name: Option<&str>) -> Option<distributary_model::Protocol> {
    use distributary_model::Protocol::{Sctp, Tcp, Udp};
    match name {
        None | Some("TCP" | "") => Some(Tcp),
        Some("UDP") => Some(Udp),
        Some("SCTP") => Some(Sctp),
        Some(_) => None,
    }
}

/// A port number; `None` outside of 1 to 65535.
pub(crate) fn port(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|&port| port != 0)
}
