//! The inside HTTP listener: metrics and health.
