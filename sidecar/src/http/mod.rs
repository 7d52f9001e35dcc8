//! HTTP: one connection, one request. [`request`] has the whole life of a request on one page.

pub mod answer;
pub mod body;
pub mod classify;
pub mod date;
pub mod headers;
pub mod incoming;
pub mod marks;
pub mod plan;
mod reply;
pub mod request;
pub mod serve;
mod tries;
pub mod upgrade;

#[cfg(test)]
pub(crate) mod tests;
