//! The benchmarks run to their end and say what is promised. How fast is not asked here.

use std::fs;

use lab::bench::{Args, Bench, Group};

#[test]
fn every_group_gives_its_rows() {
    let out = tempfile::tempdir().unwrap();
    let out_dir = out.path().to_owned();
    let args = Args { out: out_dir, rounds: 1, bursts: 1, tcp_seconds: 1, quick: true, only: Vec::new() };
    lab::bench::run(&args).expect("all groups (needs root, iperf3, ethtool, iptables, nftables)");
    let bench: Bench = serde_json::from_slice(&fs::read(out.path().join("bench.json")).unwrap()).unwrap();
    let of = |part: &str| bench.rows.iter().filter(|row| row.name.contains(part)).count();
    assert_eq!((of("encapsulation"), of("decapsulation"), of("octet packets"), of("TCP")), (4, 4, 2, 1));
    assert_eq!((of("Map-Requests"), of("Map-Registers")), (2, 2));
    // 64 and 128 octets, both protocols, and the mix: five rows each.
    assert_eq!(
        (of("datagrams"), of("SYNs"), of("IMIX"), of("balancer's program"), of("apply")),
        (10, 10, 5, 8, 2)
    );
    assert!(
        out.path().join("rfc2544/result.json").is_file() && out.path().join("rfc2544/imix-pps.png").is_file()
    );
    // What is left of a burst without the generator's part may be nothing when the machine does something else.
    for row in bench.rows.iter().filter(|row| !row.name.contains("without the generator")) {
        assert!(row.value > 0.0 && row.reference > 0.0 && row.ratio > 0.0 && !row.runs.is_empty(), "{row:?}");
    }
    assert!(
        lab::bench::run(&Args { only: vec![Group::Programs], ..args }).is_ok(),
        "a second run finds no leftovers"
    );
}
