//! Request → cluster: one normalisation, virtual hosts, routes, rewrites. No I/O.
