//! A contract only grows: what an older schema said, the present one says with the same numbers and types, so that either end
//! understands the other (stream rule 1.4). `frozen/N` is the contract as it was when schema N was the newest.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto};

type Fields = BTreeMap<(String, i32), (String, Type, Label, String, Option<String>)>;

#[derive(Default)]
struct Contract {
    fields: Fields,
    values: BTreeMap<(String, i32), String>,
}

fn contract(directory: &str) -> Contract {
    let root = env!("CARGO_MANIFEST_DIR");
    let files =
        protox::compile(["distributary/v1/distribution.proto"], [format!("{root}/{directory}")]).unwrap();
    let mut contract = Contract::default();
    files.file.iter().for_each(|file: &FileDescriptorProto| {
        file.message_type.iter().for_each(|message| contract.message("", message));
        file.enum_type.iter().for_each(|one| contract.values("", one));
    });
    contract
}

impl Contract {
    fn message(&mut self, outside: &str, message: &DescriptorProto) {
        let name = format!("{outside}.{}", message.name());
        for field in &message.field {
            let oneof = field.oneof_index.map(|index| message.oneof_decl[index as usize].name().to_owned());
            let told =
                (field.name().to_owned(), field.r#type(), field.label(), field.type_name().to_owned(), oneof);
            self.fields.insert((name.clone(), field.number()), told);
        }
        message.nested_type.iter().for_each(|nested| self.message(&name, nested));
        message.enum_type.iter().for_each(|one| self.values(&name, one));
    }

    fn values(&mut self, outside: &str, one: &EnumDescriptorProto) {
        let name = format!("{outside}.{}", one.name());
        for value in &one.value {
            self.values.insert((name.clone(), value.number()), value.name().to_owned());
        }
    }
}

#[test]
fn rule_1_4_what_an_older_schema_says_is_said_the_same_way() {
    let (then, now) = (contract("frozen/1"), contract("."));
    assert!(then.fields.len() > 80 && then.values.len() > 15, "the frozen contract is there");
    for (field, told) in &then.fields {
        assert_eq!(now.fields.get(field), Some(told), "field {} of {}", field.1, field.0);
    }
    for (value, name) in &then.values {
        assert_eq!(now.values.get(value), Some(name), "value {} of {}", value.1, value.0);
    }
}
