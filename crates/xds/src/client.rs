//! The client's half: delta ADS as a state machine.
