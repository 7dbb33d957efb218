//! The stand-in issuer.
