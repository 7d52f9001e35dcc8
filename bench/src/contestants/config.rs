//! Configurations of the foreign pairs: plain HTTP/1.1 in, mutual TLS 1.3 with one identity on each side between.

use std::net::SocketAddr;

use super::certificates::Files;

/// Envoy beside the caller.
pub fn envoy_caller(entry: SocketAddr, between: SocketAddr, files: &Files) -> String {
    let tls = format!(
        r#"
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
          sni: bench
          common_tls_context:{}"#,
        envoy_tls(files)
    );
    envoy(entry, between, "", &tls)
}

/// Envoy beside the callee.
pub fn envoy_callee(between: SocketAddr, backend: SocketAddr, files: &Files) -> String {
    let tls = format!(
        r#"
          transport_socket:
            name: envoy.transport_sockets.tls
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
              require_client_certificate: true
              common_tls_context:{}"#,
        envoy_tls(files).replace('\n', "\n    ")
    );
    envoy(between, backend, &tls, "")
}

fn envoy_tls(files: &Files) -> String {
    format!(
        r#"
            tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3, ecdh_curves: [X25519MLKEM768, X25519] }}
            tls_certificates: [{{ certificate_chain: {{ filename: "{}" }}, private_key: {{ filename: "{}" }} }}]
            validation_context:
              trusted_ca: {{ filename: "{}" }}
              match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ exact: "spiffe://weft.local/ns/default/sa/bench" }} }}]"#,
        files.chain.display(),
        files.key.display(),
        files.ca.display()
    )
}

fn envoy(listen: SocketAddr, to: SocketAddr, downstream_tls: &str, upstream_tls: &str) -> String {
    format!(
        r#"static_resources:
  listeners:
    - name: in
      address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: in
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: ["*"]
                      routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: to, timeout: 0s }} }}]
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}{downstream_tls}
  clusters:
    - name: to
      type: STATIC
      load_assignment:
        cluster_name: to
        endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {} }} }} }} }}] }}]{upstream_tls}
"#,
        listen.port(),
        to.port()
    )
}

/// HAProxy beside the caller.
pub fn haproxy_caller(entry: SocketAddr, between: SocketAddr, files: &Files) -> String {
    haproxy(
        &format!("bind {entry}"),
        &format!(
            "server to {between} ssl crt {} ca-file {} verify required verifyhost bench sni str(bench) alpn http/1.1 ssl-min-ver TLSv1.3",
            files.both.display(),
            files.ca.display()
        ),
    )
}

/// HAProxy beside the callee.
pub fn haproxy_callee(between: SocketAddr, backend: SocketAddr, files: &Files) -> String {
    haproxy(
        &format!(
            "bind {between} ssl crt {} ca-file {} verify required alpn http/1.1 ssl-min-ver TLSv1.3",
            files.both.display(),
            files.ca.display()
        ),
        &format!("server to {backend}"),
    )
}

fn haproxy(bind: &str, server: &str) -> String {
    format!(
        "global\n  nbthread 1\n  maxconn 8192\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  http-reuse always\n\
         frontend in\n  {bind}\n  default_backend out\n\
         backend out\n  {server}\n"
    )
}
