//! The admission webhook
