//! Turns `crates/proto/pulsar/*.proto` into `crates/proto/src/generated.rs`.
//!
//! The result is committed, so that no build needs `protoc` or this step; the test below fails
//! when the two have drifted apart. protox parses the files, prost-build writes the Rust.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use prost_build::Module;
use protox::prost_reflect::prost_types::{EnumDescriptorProto, FileDescriptorProto};

const PROTO_FILES: [&str; 2] = ["pulsar.proto", "markers.proto"];

/// Writes the generated file anew.
pub(crate) fn run(workspace: &Path) -> Result<()> {
    let target = target(workspace);
    let text = generate(workspace)?;
    std::fs::write(&target, text).with_context(|| format!("cannot write `{}`", target.display()))
}

fn target(workspace: &Path) -> PathBuf {
    workspace.join("crates/proto/src/generated.rs")
}

fn generate(workspace: &Path) -> Result<String> {
    let include = workspace.join("crates/proto/pulsar");
    let descriptors = protox::compile(PROTO_FILES, [&include])
        .with_context(|| format!("cannot parse `{}`", include.display()))?;
    let shapes = shapes(&descriptors.file[0])?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    config.disable_comments(["."]);
    // The key of the map is the package of the .proto files.
    let modules = config.generate(
        descriptors
            .file
            .into_iter()
            .map(|file| (Module::from_protobuf_package_name(file.package()), file))
            .collect(),
    )?;
    ensure!(modules.len() == 1, "all .proto files share one package");
    let code: String = modules.into_values().collect();
    Ok(format!(
        "// Written by `cargo xtask codegen` from crates/proto/pulsar/*.proto. Do not edit.\n\n{code}{shapes}"
    ))
}

// As the descriptors number them.
const REQUIRED: Option<i32> = Some(2);
const MESSAGE: Option<i32> = Some(11);
const ENUM: Option<i32> = Some(14);

/// What prost does not say of a message: which fields it must have. See `crates/proto/src/required.rs`.
fn shapes(file: &FileDescriptorProto) -> Result<String> {
    let scope = format!(".{}", file.package());
    let place: HashMap<String, usize> = file
        .message_type
        .iter()
        .enumerate()
        .map(|(at, message)| (format!("{scope}.{}", message.name()), at))
        .collect();
    let mut known = HashMap::new();
    collect_enums(&scope, &file.enum_type, &mut known)?;
    for message in &file.message_type {
        let scope = format!("{scope}.{}", message.name());
        collect_enums(&scope, &message.enum_type, &mut known)?;
    }
    let mut out = String::from("pub(crate) static SHAPES: &[crate::required::Shape] = &[\n");
    let mut commands = String::new();
    for message in &file.message_type {
        let (mut required, mut messages, mut enums) = (0u64, String::new(), String::new());
        for field in message.field.iter().filter(|field| field.number() < 64) {
            let is_required = field.label == REQUIRED;
            if is_required {
                required |= 1 << field.number();
            }
            if field.r#type == MESSAGE {
                let at = place[field.type_name()];
                write!(messages, "({}, {at}), ", field.number())?;
            }
            if field.r#type == ENUM && is_required {
                write!(
                    enums,
                    "({}, {:#x}), ",
                    field.number(),
                    known[field.type_name()]
                )?;
            }
        }
        if message.name() == "BaseCommand" {
            for field in message.field.iter().filter(|field| field.r#type == MESSAGE) {
                let at = place[field.type_name()];
                write!(commands, "({}, {at}), ", field.number())?;
            }
            // The type of a command may be a later version's.
            enums.clear();
        }
        writeln!(
            out,
            "    crate::required::Shape {{ name: \"{}\", required: {required:#x}, messages: &[{messages}], enums: &[{enums}] }},",
            message.name()
        )?;
    }
    writeln!(
        out,
        "];\npub(crate) static COMMAND_SHAPES: &[(i32, usize)] = &[{commands}];"
    )?;
    Ok(out)
}

/// The values of each enum as a set of bits; those beyond are in no required field.
fn collect_enums(
    scope: &str,
    enums: &[EnumDescriptorProto],
    known: &mut HashMap<String, u64>,
) -> Result<()> {
    for named in enums {
        let values = named.value.iter().map(|value| value.number());
        let bits = values
            .filter(|value| (0..64).contains(value))
            .fold(0, |bits, value| bits | 1u64 << value);
        ensure!(
            bits != 0,
            "the enum `{}` has no value below 64",
            named.name()
        );
        known.insert(format!("{scope}.{}", named.name()), bits);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_code_is_fresh() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let committed = std::fs::read_to_string(target(&workspace)).unwrap();
        assert!(
            committed == generate(&workspace).unwrap(),
            "crates/proto/src/generated.rs is stale: run `cargo xtask codegen`"
        );
    }
}
