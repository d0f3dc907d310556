//! Pure plans: the mesh graph, its checks, the diff of wanted and actual.

pub mod builtin;
pub mod crd;
pub mod decode;
pub mod json;
pub mod node;
pub mod yaml;
