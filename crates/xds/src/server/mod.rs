//! The server's half: one stream as a state machine.
