//! Integration tests: real meshes on loopback.
