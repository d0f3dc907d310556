//! Avro's resolution rules: whether what was written with one schema can be read with another.

use std::collections::HashMap;

use super::{Avro, Field, Name, Primitive, Type, TypeId};

/// Types within types, followed through their names.
const DEPTH_MAX: usize = 200;
/// Pairs of types compared, with their fields and symbols: a union of many with a union of many is
/// a product.
const STEPS_MAX: usize = 400_000;
/// Bytes of the path that an error names.
const PATH_BYTES_MAX: usize = 1_024;

impl Avro {
    /// Why this, as the reader's schema, cannot read what was written with `writer`.
    pub(crate) fn cannot_read(&self, writer: &Avro) -> Option<String> {
        let mut resolver = Resolver {
            reader: self,
            writer,
            known: HashMap::new(),
            steps: 0,
        };
        resolver.check(self.root, writer.root, "", 0).err()
    }
}

struct Resolver<'a> {
    reader: &'a Avro,
    writer: &'a Avro,
    /// Pairs of records: none while under check, when a type that contains itself is readable if
    /// the rest is.
    known: HashMap<(TypeId, TypeId), Option<String>>,
    steps: usize,
}

type Checked = Result<(), String>;

impl<'a> Resolver<'a> {
    fn check(&mut self, reader_id: TypeId, writer_id: TypeId, at: &str, depth: usize) -> Checked {
        self.steps += 1;
        if depth > DEPTH_MAX || self.steps > STEPS_MAX {
            return Err(format!("`{at}` is too complex to compare"));
        }
        let (readers, writers): (&'a Avro, &'a Avro) = (self.reader, self.writer);
        match (&readers.types[reader_id], &writers.types[writer_id]) {
            // Whatever branch was written must be readable.
            (_, Type::Union(branches)) => branches
                .iter()
                .try_for_each(|branch| self.check(reader_id, *branch, at, depth + 1)),
            (Type::Union(branches), written) => {
                let mut branches = branches.iter();
                let readable = branches.any(|branch| {
                    let result = self.check(*branch, writer_id, at, depth + 1);
                    result.is_ok()
                });
                match readable {
                    true => Ok(()),
                    false => Err(format!("no branch of `{at}` reads {}", kind(written))),
                }
            }
            (Type::Primitive(ours), Type::Primitive(theirs)) if reads(*ours, *theirs) => Ok(()),
            (Type::Array(ours), Type::Array(theirs)) | (Type::Map(ours), Type::Map(theirs)) => {
                self.check(*ours, *theirs, at, depth + 1)
            }
            (
                Type::Fixed {
                    name: ours,
                    size: our_size,
                },
                Type::Fixed { name, size },
            ) => {
                same_name(ours, name)?;
                match our_size == size {
                    true => Ok(()),
                    false => Err(format!("the size of `{}` differs", name.full)),
                }
            }
            (
                Type::Enum {
                    name: ours,
                    symbols: known,
                    has_default,
                },
                Type::Enum { name, symbols, .. },
            ) => {
                same_name(ours, name)?;
                self.steps += known.len() + symbols.len();
                let known: std::collections::HashSet<&String> = known.iter().collect();
                match symbols.iter().find(|symbol| !known.contains(symbol)) {
                    Some(symbol) if !has_default => {
                        Err(format!("the enum `{}` does not know `{symbol}`", ours.full))
                    }
                    _ => Ok(()),
                }
            }
            (
                Type::Record { name: ours, fields },
                Type::Record {
                    name,
                    fields: written,
                },
            ) => {
                match self.known.get(&(reader_id, writer_id)) {
                    Some(None) => return Ok(()),
                    Some(Some(reason)) => return Err(reason.clone()),
                    None => {}
                }
                self.known.insert((reader_id, writer_id), None);
                let checked =
                    same_name(ours, name).and_then(|()| self.fields(fields, written, at, depth));
                if let Err(reason) = &checked {
                    let reason = Some(reason.clone());
                    self.known.insert((reader_id, writer_id), reason);
                }
                checked
            }
            (ours, theirs) => Err(format!(
                "`{at}` is {} where {} is expected",
                kind(theirs),
                kind(ours)
            )),
        }
    }

    fn fields(&mut self, ours: &[Field], theirs: &[Field], at: &str, depth: usize) -> Checked {
        self.steps += ours.len() + theirs.len();
        let by_name: HashMap<&str, &Field> = theirs
            .iter()
            .map(|field| (field.name.as_str(), field))
            .collect();
        for field in ours {
            let mut names = std::iter::once(&field.name).chain(&field.aliases);
            let written = names.find_map(|name| by_name.get(name.as_str()));
            match written {
                Some(written) => {
                    let at = match at.len() + field.name.len() < PATH_BYTES_MAX {
                        true => format!("{at}/{}", field.name),
                        false => at.to_owned(),
                    };
                    self.check(field.r#type, written.r#type, &at, depth + 1)?;
                }
                None if field.has_default => {}
                None => {
                    return Err(format!(
                        "`{at}/{}` has no default and is not always written",
                        field.name
                    ));
                }
            }
        }
        Ok(())
    }
}

/// As Avro compares them: names without namespace, or one of the reader's aliases.
fn same_name(reader: &Name, writer: &Name) -> Checked {
    if reader.short() == writer.short() || reader.aliases.contains(&writer.full) {
        return Ok(());
    }
    Err(format!(
        "`{}` where `{}` is expected",
        writer.full, reader.full
    ))
}

fn reads(reader: Primitive, writer: Primitive) -> bool {
    use Primitive::{Bytes, Double, Float, Int, Long, String};
    reader == writer
        || matches!(
            (reader, writer),
            (Long, Int)
                | (Float, Int | Long)
                | (Double, Int | Long | Float)
                | (Bytes, String)
                | (String, Bytes)
        )
}

fn kind(r#type: &Type) -> String {
    match r#type {
        Type::Primitive(primitive) => primitive.as_str().to_owned(),
        Type::Array(_) => "an array".to_owned(),
        Type::Map(_) => "a map".to_owned(),
        Type::Union(_) => "a union".to_owned(),
        Type::Fixed { name, .. } | Type::Enum { name, .. } | Type::Record { name, .. } => {
            format!("`{}`", name.full)
        }
    }
}
