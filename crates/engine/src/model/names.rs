//! Numbers of images, registries and credential scopes.

use super::{images::Images, registries::Registries, scopes::Scopes};
use crate::vocabulary::Settings;

/// Everything that has a number of its own for the whole process.
#[derive(Debug, Default)]
pub struct Names {
    /// Images.
    pub images: Images,
    /// Registry hosts.
    pub registries: Registries,
    /// Credential scopes.
    pub scopes: Scopes,
    /// They are swept when there are so many.
    pub(super) sweep_at: usize,
}

impl Names {
    /// None yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            registries: Registries::new(settings),
            ..Self::default()
        }
    }
}
