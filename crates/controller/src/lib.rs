//! The controller
