//! The store on a real file: reopened, refused, compacted, killed.

use std::{
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::PathBuf,
    process::{Command, Stdio},
};

use redb::{Database, TableDefinition};
use tempfile::TempDir;
use weft_model::{Kind, ResourceKey};

use super::*;

fn directory() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    (directory, path)
}

fn meta(message: &str) -> Meta {
    Meta { author: "operator".into(), message: message.into(), time_ms: 1 }
}

fn set(name: &str, yaml: &str) -> Event {
    let key = ResourceKey::new(Kind::Service, "default", name);
    Event::Set { key, api_version: "v1".into(), yaml: yaml.into() }
}

#[tokio::test]
async fn what_was_appended_is_there_after_a_restart() {
    let (_directory, path) = directory();
    let store = Store::open(&path).unwrap();
    let mut head = store.watch();
    assert_eq!(store.append(None, vec![set("a", "1")], meta("first")).await.unwrap(), 1);
    assert_eq!(store.append(Some(1), vec![set("b", "2")], meta("second")).await.unwrap(), 2);
    assert_eq!(*head.borrow_and_update(), 2);
    let conflict = store.append(Some(1), vec![set("c", "3")], meta("late")).await.unwrap_err();
    assert!(matches!(conflict, StoreError::Conflict { expected: 1, head: 2 }), "{conflict}");
    let before = store.log();
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(store.log().head(), 2);
    assert_eq!(store.log().current(), before.current());
    assert_eq!(store.log().entries(), before.entries());
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn compaction_survives_a_restart() {
    let (_directory, path) = directory();
    let store = Store::open_keeping(&path, 5).unwrap();
    for round in 0..250 {
        store.append(None, vec![set(&format!("s{}", round % 7), &round.to_string())], meta("")).await.unwrap();
    }
    let resources = store.log().current().clone();
    drop(store);
    let store = Store::open_keeping(&path, 5).unwrap();
    assert_eq!(store.log().head(), 250);
    assert!(store.log().begins() > 100, "begins at {}", store.log().begins());
    assert_eq!(*store.log().current(), resources);
    assert!(matches!(store.log().at(1), Err(StoreError::Compacted { .. })));
}

#[tokio::test]
async fn callers_that_wait_together_are_all_answered() {
    let (_directory, path) = directory();
    let store = Store::open(&path).unwrap();
    let appends = (0..100).map(|index| {
        let store = store.clone();
        async move { store.append(None, vec![set(&format!("s{index}"), "")], meta("")).await.unwrap() }
    });
    let mut revisions = futures_util::future::join_all(appends).await;
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_transaction_returns_its_value() {
    const TABLE: TableDefinition<&str, u64> = TableDefinition::new("test");
    let (_directory, path) = directory();
    let store = Store::open(&path).unwrap();
    let old = store.transact(|tx| Ok(tx.open_table(TABLE)?.insert("x", 5)?.map(|old| old.value()))).await.unwrap();
    assert_eq!(old, None);
    let old = store.transact(|tx| Ok(tx.open_table(TABLE)?.insert("x", 6)?.map(|old| old.value()))).await.unwrap();
    assert_eq!(old, Some(5));
}

#[test]
fn a_newer_schema_is_refused_with_both_versions() {
    let (_directory, path) = directory();
    drop(Store::open(&path).unwrap());
    let database = Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(TableDefinition::<&str, u64>::new("meta")).unwrap().insert("schema", SCHEMA + 1).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let text = Store::open(&path).unwrap_err().to_string();
    assert!(text.contains("schema 2") && text.contains("schema 1") && text.contains("restore a copy"), "{text}");
}

#[test]
fn two_control_planes_do_not_share_a_directory() {
    let (_directory, path) = directory();
    let _first = Store::open(&path).unwrap();
    let text = Store::open(&path).unwrap_err().to_string();
    assert!(text.contains("another control plane"), "{text}");
}

#[test]
fn an_interrupted_creation_leaves_no_store() {
    let (_directory, path) = directory();
    std::fs::write(path.with_extension("new"), b"half a file").unwrap();
    assert_eq!(Store::open(&path).unwrap().log().head(), 0);
}

/// Kills a process that appends, at moments of no one's choosing, and looks for every revision it was told of.
#[test]
fn a_kill_loses_nothing_acknowledged() {
    let (_directory, path) = directory();
    let mut acknowledged = 0;
    for _ in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::child_that_appends", "--ignored", "--nocapture"])
            .env(CHILD_STORE, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = fastrand::usize(1..12);
        let acks = lines.by_ref().map(Result::unwrap).filter_map(|line| revision(&line)).take(wanted);
        acknowledged = acks.last().expect("the child appends until it is killed");
        for _ in 0..fastrand::u32(0..200_000) {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        // What it still said before it died counts, too.
        acknowledged = lines.map_while(Result::ok).filter_map(|line| revision(&line)).last().unwrap_or(acknowledged);
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        let log = Store::open_keeping(&path, CHILD_KEEPS).unwrap().log();
        assert!(log.head() >= acknowledged, "{acknowledged} was acknowledged, the file ends at {}", log.head());
        let newest = log.current().values().map(|stored| stored.revision).max();
        assert_eq!(newest, Some(log.head()), "the change is whole");
    }
    assert!(acknowledged as usize > KILLS);
}

#[test]
#[ignore = "run by a_kill_loses_nothing_acknowledged as a process of its own"]
fn child_that_appends() {
    let Ok(path) = std::env::var(CHILD_STORE) else { return };
    let store = Store::open_keeping(path.as_ref(), CHILD_KEEPS).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        loop {
            let events = (0..5).map(|name| set(&format!("s{name}"), &"x".repeat(fastrand::usize(0..3000)))).collect();
            let revision = store.append(None, events, meta("")).await.unwrap();
            println!("\nrevision {revision} is safe");
        }
    });
}

#[test]
fn a_full_disk_is_survived_without_a_restart() {
    let (_directory, path) = directory();
    // A file may not grow beyond the limit, in blocks of 512 bytes; the signal that would come with it is ignored.
    let script = r#"trap '' XFSZ; ulimit -S -f 6000; exec "$0" "$@""#;
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::child_that_fills_the_disk", "--ignored", "--nocapture"])
        .env(CHILD_STORE, &path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let acknowledged =
        text.lines().filter_map(revision).next_back().expect("the child appends again once there is room");
    assert_eq!(Store::open(&path).unwrap().log().head(), acknowledged);
}

#[test]
#[ignore = "run by a_full_disk_is_survived_without_a_restart as a process of its own"]
fn child_that_fills_the_disk() {
    let Ok(path) = std::env::var(CHILD_STORE) else { return };
    let store = Store::open(path.as_ref()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let append = || store.append(None, vec![set("large", &"x".repeat(200_000))], meta(""));
        let mut good = 0;
        while let Ok(revision) = append().await {
            good = revision;
            assert!(good < 1000, "the limit does not hold");
        }
        assert!(append().await.is_err(), "there is still no room");
        assert_eq!(store.log().head(), good, "what was acknowledged stays readable");
        let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_FSIZE).unwrap();
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_FSIZE, most, most).unwrap();
        assert_eq!(append().await.unwrap(), good + 1);
        println!("\nrevision {} is safe", good + 1);
    });
}

fn revision(line: &str) -> Option<u64> {
    line.strip_prefix("revision ")?.strip_suffix(" is safe")?.parse().ok()
}

const CHILD_STORE: &str = "WEFT_TEST_STORE";
/// Few, so that compactions are killed, too.
const CHILD_KEEPS: usize = 3;
const KILLS: usize = 25;
