//! Weft as it is deployed: images in a Docker engine, manifests through the tools that read them.
//!
//! Without an engine (or without root to start one) each test says what it left out.

mod check;
mod compose;
mod images;
