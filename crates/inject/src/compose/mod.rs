//! An overlay beside a compose file.
