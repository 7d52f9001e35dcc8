//! What a resource must obey beyond the shape of its fields: fields that belong together, and expressions that compile.

use crate::{check::Report, resource::Resource};

/// Reports what is wrong with a resource taken by itself.
pub(crate) fn check(_resource: &Resource, _report: &mut Report<'_>) {}
