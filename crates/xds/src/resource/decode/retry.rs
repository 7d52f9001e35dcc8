//! Retry policies.

use std::time::Duration;

use http::StatusCode;
use weft_proto::{
    envoy::config::route::v3::{self as proto},
    weft::v1::RouteExtension,
};

use super::{
    super::{RetryOn, RetryPolicy},
    value::{At, LONGEST, Result, err, message_name, positive, timeout, unsupported},
};

/// Most tries of one request.
const MOST_RETRIES: u32 = 100;
/// Largest body that is kept for a replay, in bytes.
const LARGEST_REPLAY: usize = 16 << 20;

pub(super) fn decode(proto: &proto::RetryPolicy) -> Result<RetryPolicy> {
    unsupported(proto.per_try_idle_timeout.is_some(), "per_try_idle_timeout")?;
    unsupported(proto.retry_priority.is_some(), "retry_priority")?;
    unsupported(!proto.retry_options_predicates.is_empty(), "retry_options_predicates")?;
    unsupported(!proto.retriable_headers.is_empty(), "retriable_headers")?;
    unsupported(!proto.retriable_request_headers.is_empty(), "retriable_request_headers")?;
    unsupported(proto.refresh_cluster_on_retry, "refresh_cluster_on_retry")?;
    for (index, it) in proto.retry_host_predicate.iter().enumerate() {
        // Which is what the balancer does: endpoints that were tried come last.
        let usual = matches!(&it.config_type, Some(proto::retry_policy::retry_host_predicate::ConfigType::TypedConfig(any))
            if message_name(any).ends_with(".PreviousHostsPredicate"));
        unsupported(!usual, "").at_index("retry_host_predicate", index)?;
    }
    if let Some(limited) = &proto.rate_limited_retry_back_off {
        let usual =
            limited.reset_headers.iter().all(|it| it.name.eq_ignore_ascii_case("retry-after") && it.format == 0);
        unsupported(!usual, "rate_limited_retry_back_off.reset_headers")?;
    }
    let retries = proto.num_retries.unwrap_or(1);
    if retries > MOST_RETRIES {
        return err("num_retries", format!("{retries} is above {MOST_RETRIES}"));
    }
    let default = RetryPolicy::default();
    let (backoff_base, backoff_max) = match &proto.retry_back_off {
        Some(it) => back_off(it).at("retry_back_off")?,
        None => (default.backoff_base, default.backoff_max),
    };
    Ok(RetryPolicy {
        retries,
        on: retry_on(proto)?,
        per_try_timeout: timeout(proto.per_try_timeout.as_ref(), "per_try_timeout")?,
        backoff_base,
        backoff_max,
        idempotent: false,
        body_bytes: default.body_bytes,
    })
}

fn back_off(proto: &proto::retry_policy::RetryBackOff) -> Result<(Duration, Duration)> {
    let Some(base) = &proto.base_interval else { return err("base_interval", "is missing") };
    let base = positive(base, "base_interval")?;
    let max = match &proto.max_interval {
        Some(it) => positive(it, "max_interval")?,
        None => base.saturating_mul(10).min(LONGEST),
    };
    if max < base { err("max_interval", "is below base_interval") } else { Ok((base, max)) }
}

fn retry_on(proto: &proto::RetryPolicy) -> Result<RetryOn> {
    let mut on = RetryOn::default();
    for token in proto.retry_on.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        match token {
            "connect-failure" => on.connect_failure = true,
            "refused-stream" => on.refused_stream = true,
            "reset" | "reset-before-request" => on.reset = true,
            "gateway-error" => on.gateway_error = true,
            "5xx" => on.server_error = true,
            "retriable-4xx" => on.statuses.push(StatusCode::CONFLICT),
            "retriable-status-codes" => {
                for (index, code) in proto.retriable_status_codes.iter().enumerate() {
                    on.statuses.push(status(*code).at_index("retriable_status_codes", index)?);
                }
            }
            "cancelled" => on.grpc.push(1),
            "deadline-exceeded" => on.grpc.push(4),
            "resource-exhausted" => on.grpc.push(8),
            "internal" => on.grpc.push(13),
            "unavailable" => on.grpc.push(14),
            // Not Envoy's: sent to our own sidecar alone.
            "unknown" => on.grpc.push(2),
            "aborted" => on.grpc.push(10),
            "data-loss" => on.grpc.push(15),
            other => return err("retry_on", format!("{other:?} is not supported")),
        }
    }
    on.statuses.sort();
    on.statuses.dedup();
    on.grpc.sort_unstable();
    on.grpc.dedup();
    Ok(on)
}

/// A status of an answer.
pub(super) fn status(code: u32) -> Result<StatusCode> {
    match u16::try_from(code).map(StatusCode::from_u16) {
        Ok(Ok(status)) if (200..600).contains(&code) => Ok(status),
        _ => err("", format!("{code} is not a status")),
    }
}

/// What the extension says of retries: it changes a policy, the default one if the route has none.
pub(super) fn extend(retry: &mut Option<RetryPolicy>, proto: &proto::Route, extension: &RouteExtension) -> Result<()> {
    #[expect(deprecated, reason = "other control planes still write it")]
    let old = proto.per_request_buffer_limit_bytes.map(u64::from);
    let bytes = match extension.retry_body_bytes {
        0 => proto.request_body_buffer_limit.or(old),
        bytes => Some(u64::from(bytes)),
    };
    if bytes.is_none() && !extension.idempotent {
        return Ok(());
    }
    let policy = retry.get_or_insert_default();
    policy.idempotent = extension.idempotent;
    if let Some(bytes) = bytes {
        policy.body_bytes = match usize::try_from(bytes) {
            Ok(bytes) if bytes <= LARGEST_REPLAY => bytes,
            Ok(_) | Err(_) => return err("metadata.retry_body_bytes", format!("is above {LARGEST_REPLAY}")),
        };
    }
    Ok(())
}
