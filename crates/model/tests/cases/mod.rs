//! Documents of Weft's own kinds that must be refused.

pub fn traffic(spec: &str) -> String {
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p}}\nspec:\n  targetRefs: [{{kind: \
         Service, name: a}}]\n{spec}"
    )
}

pub fn access(spec: &str) -> String {
    traffic(spec).replace("TrafficPolicy", "AccessPolicy")
}

pub fn mesh(spec: &str) -> String {
    format!("apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: {{name: default}}\nspec:\n{spec}")
}

pub fn policies() -> Vec<(&'static str, String)> {
    vec![
        (
            "not supported yet",
            traffic(
                "  hedging: {delay: 1s}\n  rateLimit: {requestsPerSecond: 5}\n  healthCheck: {}\n  locality: {}\n  \
                 slowStart: {}\n  faultInjection: {}\n  loadBalancer: {peakEwma: {}}\n",
            ),
        ),
        ("a singular", traffic("  targetRef: {kind: Service, name: a}\n  timeouts: {request: 1s}\n")),
        (
            "no target",
            "apiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p}\nspec:\n  timeouts: {request: 1s}\n"
                .to_owned(),
        ),
        (
            "targets",
            "apiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p}\nspec:\n  targetRefs:\n  - {kind: \
             HTTPRoute, name: r, port: 80}\n  - {kind: Service, group: apps, name: a, port: 80, sectionName: http}\n  \
             loadBalancer: {roundRobin: {}}\n"
                .to_owned(),
        ),
        ("nothing set", traffic("")),
        ("two balancers", traffic("  loadBalancer: {roundRobin: {}, leastRequest: {}}\n")),
        ("no balancer", traffic("  loadBalancer: {leastRequest: }\n")),
        ("a balancer's word", traffic("  loadBalancer: {leastRequests: {}}\n")),
        ("a balancer with settings", traffic("  loadBalancer: {leastRequest: {choices: 2}}\n")),
        ("what to hash", traffic("  loadBalancer: {consistentHash: {virtualNodes: 0}}\n")),
        ("what to hash, meaning", traffic("  loadBalancer: {consistentHash: {header: a, sourceIp: true}}\n")),
        (
            "retry words",
            traffic("  retry: {attempts: 11, on: [connect-failure, 5xx], grpcCodes: [unavailible], budget: {percent: 101}}\n"),
        ),
        (
            "settings that clash",
            traffic(
                "  connectionPool: {maxRequests: 5}\n  circuitBreaker: {maxRequests: 6}\n  outlierDetection: \
                 {baseEjectionTime: 30s, maxEjectionTime: 3s}\n  retry: {perTryTimeout: 1s, statusCodes: [500, 500], \
                 backoff: {base: 1s, max: 10ms}}\n  timeouts: {request: 1s, perTry: 2s}\n",
            ),
        ),
        ("times", traffic("  timeouts: {request: 1y, connect: 0s, idle: '', perTry: 30h}\n")),
        (
            "access",
            access(
                "  action: AUDIT\n  rules:\n  - from: [{identities: [frontend], notNamespaces: [x]}]\n    to: [{methods: \
                 [get], paths: [orders, '/a*', '/a/*/b'], headers: []}]\n    when: [{key: a}]\n",
            ),
        ),
        ("access, meaning", access("  rules:\n  - {name: x, from: [{}]}\n  - {name: x, to: [{}]}\n")),
        (
            "identities",
            access(
                "  rules:\n  - from:\n    - identities: ['spiffe://a/b', 'spiffe://A/ns/x/sa/y', 'a/b/c', '/b', \
                 'spiffe://td/ns/x/sa/y', '*', 'x/*']\n",
            ),
        ),
        (
            "access to a route",
            access("  rules: [{}]\n").replace("kind: Service", "kind: HTTPRoute").replace("name: a}", "name: a, port: 1}"),
        ),
        (
            "mesh",
            "apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: {name: main, namespace: x}\nspec: {mtls: strict, \
             defaultAccess: Allow, certificates: {ttl: 1s}, telemetry: {}, trustDomain: A}\n"
                .to_owned(),
        ),
        ("mesh defaults", mesh("  defaults: {targetRefs: [{kind: Service, name: a}], loadBalancer: {}}\n")),
    ]
}
