//! The resource kinds of Weft: parse, default, validate. No I/O.
