//! The nouns of Geminga: names, ids, positions, function and mesh specs
