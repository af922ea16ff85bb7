//! One module for each command: it reads, has a pure function make rows or sentences, and prints them.

pub mod complete;
pub mod doctor;
pub mod generate;
pub mod list;
pub mod matrix;
pub mod nodes;
pub mod plan;
pub mod purge;
pub mod request;
pub mod status;
pub mod ui;
pub mod wait;
pub mod warm;
pub mod watch;
pub mod why;
