//! Pure plans: the mesh graph, its checks, the diff of wanted and actual.

pub mod builtin;
pub mod check;
pub mod crd;
pub mod decode;
pub mod graph;
pub mod json;
pub mod load;
pub mod node;
pub mod plan;
pub mod yaml;
