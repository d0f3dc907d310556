//! Pure plans: the mesh graph, its checks, the diff of wanted and actual
