//! What one node is asked to do, as a value. Planning reads the model and changes nothing; `commit` carries a
//! plan out. The debug service asks the same functions why an image is pulled or not.

mod checks;
pub mod context;
mod freshness;
mod gate;
mod groups;
mod node;
pub mod node_plan;
pub mod pairs;
pub mod pins;
mod pulls;
mod removals;
mod status;
pub mod supply;
mod trees;
mod verdict;

pub use node::plan;
