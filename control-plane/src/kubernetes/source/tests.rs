use http_body_util::BodyExt;
use kube::Client;
use parking_lot::Mutex;
use serde_json::{Value, json};
use weft_model::Kind;

use super::*;
use crate::kubernetes::blame::{Part, Refused};

/// Statuses as the API server holds them, and when they were written.
#[derive(Default)]
struct ApiServer {
    objects: BTreeMap<ResourceKey, Known>,
    writes: Vec<Instant>,
}

impl ApiServer {
    fn patch(&mut self, key: ResourceKey, body: &Value) -> Value {
        self.writes.push(Instant::now());
        let known = self.objects.get_mut(&key).expect("an object that is there");
        assert_eq!(body["metadata"]["resourceVersion"], known.resource_version.as_str());
        known.status = body["status"]["conditions"].as_array().expect("conditions").clone();
        known.resource_version = self.writes.len().to_string();
        let metadata = json!({ "name": key.name, "namespace": key.namespace });
        json!({ "apiVersion": "weft.mesh/v1alpha1", "kind": "TrafficPolicy", "metadata": metadata })
    }
}

fn key(number: usize) -> ResourceKey {
    ResourceKey::new(Kind::TrafficPolicy, "shop", format!("policy-{number}"))
}

/// A client of that API server; no wire in between.
fn client(api: Arc<Mutex<ApiServer>>) -> Client {
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let api = api.clone();
        async move {
            let (head, body) = request.into_parts();
            let name = head.uri.path().trim_end_matches("/status").rsplit('/').next().unwrap_or_default();
            let key = ResourceKey::new(Kind::TrafficPolicy, "shop", name);
            let body = body.collect().await.map_err(|error| std::io::Error::other(error.to_string()))?;
            let body = serde_json::from_slice(&body.to_bytes())?;
            let answer = api.lock().patch(key, &body);
            Ok::<_, std::io::Error>(http::Response::new(kube::client::Body::from(answer.to_string().into_bytes())))
        }
    });
    Client::new(service, "shop")
}

/// Lets clients refuse every one of `OBJECTS` objects when `refused` says so, for `seconds`. When statuses were written.
async fn played(seconds: u64, refused: impl Fn(Duration) -> bool) -> Vec<Instant> {
    let mut set = ResourceSet::default();
    let mut server = ApiServer::default();
    for number in 0..OBJECTS {
        let yaml = format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {{ name: policy-{number} }}\n\
             spec: {{ targetRefs: [{{ kind: Service, name: orders }}], timeouts: {{ request: 1s }} }}\n"
        );
        let parsed = weft_model::parse("test.yaml", yaml.as_bytes(), "shop");
        set.insert(parsed.documents.into_iter().next().expect("a policy").resource);
        let known = Known {
            generation: 1,
            resource_version: "0".to_owned(),
            parents: Vec::new(),
            status: Vec::new(),
            invalid: Vec::new(),
        };
        server.objects.insert(key(number), known);
    }
    let api = Arc::new(Mutex::new(server));
    let queue = Arc::new(Queue::default());
    let health = Health::new(&[], &prometheus::Registry::new()).expect("metrics");
    let stop = CancellationToken::new();
    let writing = tokio::spawn(writer::run(client(api.clone()), queue.clone(), health, stop.clone()));

    let start = Instant::now();
    let (mut refusals, mut pace) = (Refusals::default(), Pace::new(start));
    let mut before = false;
    let mut seen = 0;
    // The objects are listed.
    pace.soon(start);
    while start.elapsed() < Duration::from_secs(seconds) {
        let now = Instant::now();
        let is = refused(start.elapsed());
        // The watch brings back what was written, and that is a change as well.
        let written = api.lock().writes.len();
        if is != before || written != seen {
            pace.soon(now);
        }
        (before, seen) = (is, written);
        if now >= pace.at() {
            let part = |number| (Part { object: key(number), parent: None }, "web refuses it".to_owned());
            let standing: Refused = (0..OBJECTS).filter(|_| is).map(part).collect();
            refusals.on(standing, |_| Some(1), now.into_std());
            let server = api.lock();
            let objects: BTreeMap<&ResourceKey, &Known> = server.objects.iter().collect();
            queue.set(wanted(&objects, &set, &[], &refusals, "T"));
            pace.looked(now, refusals.due().map(Instant::from_std));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.cancel();
    writing.await.expect("the writer ends");
    api.lock().writes.clone()
}

/// Most writes within a second.
fn burst(writes: &[Instant]) -> usize {
    let second = |at: usize| writes[at..].iter().take_while(|it| **it - writes[at] < Duration::from_secs(1)).count();
    (0..writes.len()).map(second).max().unwrap_or(0)
}

const OBJECTS: usize = 50;

#[tokio::test(start_paused = true)]
async fn a_refusal_is_written_once_and_so_is_its_end() {
    let writes = played(300, |_| false).await;
    assert_eq!(writes.len(), OBJECTS, "nothing is written without a change");
    let writes = played(300, |at| (60..120).contains(&at.as_secs())).await;
    assert_eq!(writes.len(), 3 * OBJECTS);
    assert!(burst(&writes) <= 21, "{}", burst(&writes));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_refuses_now_and_then_does_not_hammer_the_api_server() {
    for period in [1, 3, 15, 45] {
        // Nothing for a while, so that the first statuses are there.
        let writes = played(3600, |at| at.as_secs() >= 10 && at.as_secs() % period < period.div_ceil(3)).await;
        assert!(writes.len() <= 12 * OBJECTS, "every {period} s: {} writes in an hour", writes.len());
        assert!(burst(&writes) <= 21, "every {period} s: {} writes in a second", burst(&writes));
    }
}

#[test]
fn what_changes_together_is_looked_at_together() {
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let mut pace = Pace::new(start);
    assert_eq!(pace.at(), start + LOOK_AGAIN);
    pace.soon(at(100));
    pace.soon(at(900));
    assert_eq!(pace.at(), at(100) + SETTLE, "changes that go on do not put it off");
    pace.looked(at(1100), None);
    assert_eq!(pace.at(), at(1100) + LOOK_AGAIN);
    pace.looked(at(1100), Some(at(1101)));
    assert_eq!(pace.at(), at(1100) + SETTLE, "not twice in a second");
    assert!(pace.young(at(1100)) && !pace.young(start + LOOK_AGAIN));
}
