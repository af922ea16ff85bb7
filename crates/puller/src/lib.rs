//! The puller of one node
