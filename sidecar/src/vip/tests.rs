use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_790_000_000;

fn full() -> Vips {
    let vips = Vips::default();
    for index in 0..LIMIT {
        assert!(vips.of_at(&format!("s{index}.shop"), NOW).is_some());
    }
    vips
}

#[test]
fn the_same_host_has_the_same_addresses_on_every_machine() {
    let (one, other) = (Vips::default(), Vips::default());
    let orders = one.of("orders.shop").unwrap();
    // Written out: a change of the hash would take the addresses from applications that hold them.
    assert_eq!(orders.v4, Ipv4Addr::new(248, 27, 73, 181));
    assert_eq!(orders.v6, "fd77:6566:7400::f81b:49b5".parse::<Ipv6Addr>().unwrap());
    other.of("carts.shop").unwrap();
    assert_eq!(other.of("orders.shop"), Some(orders));
    assert_eq!(other.known("orders.shop"), Some(orders));
    assert_eq!(one.known("carts.shop"), None);
    for address in [IpAddr::V4(orders.v4), orders.v6.into(), orders.v4.to_ipv6_mapped().into()] {
        assert_eq!(one.host(address).as_deref(), Some("orders.shop"), "{address}");
    }
}

#[test]
fn addresses_outside_the_ranges_are_of_nobody() {
    let vips = full();
    for address in
        ["239.255.255.255", "255.255.255.255", "10.0.0.1", "::1", "fd77:6566:7400:1::f000:100", "fd77:6566:7400::1"]
    {
        let address = address.parse().unwrap();
        assert!(!is_virtual(address), "{address}");
        assert_eq!(vips.host(address), None, "{address}");
    }
    assert!(is_virtual("240.0.0.1".parse().unwrap()));
    assert_eq!(vips.host("240.0.0.1".parse().unwrap()), None, "never given");
}

#[test]
fn a_full_table_gives_no_address_that_someone_may_hold() {
    let vips = full();
    let held: HashSet<_> = (0..LIMIT).map(|index| vips.of_at(&format!("s{index}.shop"), NOW).unwrap()).collect();
    assert_eq!(held.len(), LIMIT, "no two share one");
    assert_eq!(vips.of_at("new.shop", NOW + RECENT), None);
    // All but one are used again; a day later only that one may go.
    for index in 1..LIMIT {
        vips.of_at(&format!("s{index}.shop"), NOW + 1).unwrap();
    }
    let idle = vips.of_at("s0.shop", NOW).unwrap();
    assert!(vips.of_at("new.shop", NOW + RECENT + 1).is_some());
    assert_eq!(vips.table.read().host(slot(idle.v4.into()).unwrap(), NOW), None);
    assert_eq!(vips.len(), LIMIT);
    assert_eq!(vips.of_at("newer.shop", NOW + RECENT + 1), None);
}

#[test]
fn a_connection_keeps_an_address() {
    let vips = full();
    let orders = vips.of_at("s7.shop", NOW).unwrap();
    vips.table.read().host(slot(orders.v6.into()).unwrap(), NOW + RECENT).unwrap();
    vips.of_at("new.shop", NOW + RECENT + 1).unwrap();
    assert_eq!(vips.host(orders.v4.into()).as_deref(), Some("s7.shop"));
}

#[test]
fn a_restart_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let before = full();
    before.save(directory.path()).unwrap();
    let after = Vips::default();
    after.restore(directory.path());
    assert_eq!(after.table.read().entries(), before.table.read().entries());
}

#[test]
fn a_damaged_file_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let vips = Vips::default();
    vips.of("orders.shop").unwrap();
    vips.of("carts.shop").unwrap();
    let bytes = file::encode(&vips.table.read());
    for index in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[index] ^= 1;
        assert!(file::decode(&damaged).is_err(), "byte {index}");
        assert!(file::decode(&bytes[..index]).is_err(), "length {index}");
    }
    std::fs::write(directory.path().join(file::NAME), &bytes[..40]).unwrap();
    let after = Vips::default();
    after.restore(directory.path());
    assert!(after.is_empty());
    assert_eq!(after.of("orders.shop"), vips.of("orders.shop"), "made from the name");
    std::fs::remove_file(directory.path().join(file::NAME)).unwrap();
    std::fs::create_dir(directory.path().join(file::NAME)).unwrap();
    after.restore(directory.path());
}

#[test]
fn a_file_that_gives_one_address_to_two_is_not_used() {
    for lines in [
        "241.0.0.1 a.shop 1\n241.0.0.1 b.shop 1\n",
        "241.0.0.1 a.shop 1\n241.0.0.2 a.shop 1\n",
        "10.0.0.1 a.shop 1\n",
        "240.0.0.1 a.shop 1\n",
        "241.0.0.1  1\n",
        "241.0.0.1 a.shop 1 2\n",
    ] {
        let text = format!("weft-vips-1 {:016x}\n{lines}", xxhash_rust::xxh3::xxh3_64(lines.as_bytes()));
        assert!(file::decode(text.as_bytes()).is_err(), "{lines}");
    }
}

#[tokio::test(start_paused = true)]
async fn new_addresses_reach_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let vips = Arc::new(Vips::default());
    let stop = CancellationToken::new();
    let keeping = {
        let (vips, stop, path) = (vips.clone(), stop.clone(), directory.path().to_owned());
        tokio::spawn(async move { vips.keep(&path, stop).await })
    };
    vips.of("orders.shop").unwrap();
    let path = directory.path().join(file::NAME);
    while !path.exists() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    vips.of("carts.shop").unwrap();
    stop.cancel();
    keeping.await.unwrap();
    assert_eq!(file::load(&path).unwrap().len(), 2);
}

proptest! {
    #[test]
    fn whatever_is_asked_every_host_has_an_address_of_its_own(
        steps in proptest::collection::vec(("[a-c]{1,3}\\.[a-b]{1,2}", 0..3 * RECENT), 1..200),
    ) {
        let vips = Vips::default();
        let mut given = std::collections::HashMap::new();
        for (host, later) in steps {
            let vip = vips.of_at(&host, NOW + later).unwrap();
            prop_assert_eq!(*given.entry(host.clone()).or_insert(vip), vip);
            let (v4, v6) = (vips.host(vip.v4.into()), vips.host(vip.v6.into()));
            prop_assert_eq!(v4.as_deref(), Some(&*host));
            prop_assert_eq!(v6, v4);
        }
        let different: HashSet<_> = given.values().collect();
        prop_assert_eq!(different.len(), given.len());
        let again = file::decode(&file::encode(&vips.table.read())).unwrap();
        prop_assert_eq!(again.entries(), vips.table.read().entries());
    }

    #[test]
    fn no_file_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "\\PC{0,200}") {
        prop_assert!(file::decode(&bytes).is_err());
        let lines = format!("weft-vips-1 {:016x}\n{text}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()));
        // Read or refused, never a crash.
        if let Ok(table) = file::decode(lines.as_bytes()) {
            prop_assert!(table.len() <= text.lines().count());
        }
    }
}
