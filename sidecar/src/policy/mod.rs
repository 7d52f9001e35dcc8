//! Access rules, retry plan, timeouts. No I/O.
