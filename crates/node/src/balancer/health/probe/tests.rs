use super::*;

#[test]
fn statuses_are_one_or_a_range() {
    for text in ["200", "200-399", "100-599"] {
        assert_eq!(text.parse::<StatusRange>().unwrap().to_string(), text);
    }
    for text in ["", "99", "600", "399-200", "200-", "-200", "2xx", "200-300-400", "70000"] {
        assert!(text.parse::<StatusRange>().is_err(), "{text}");
    }
}

#[test]
fn right_statuses_are_2xx_and_3xx_unless_told_otherwise() {
    let to = "192.0.2.1:80".parse().unwrap();
    let right = |expected: &[StatusRange], seen| right_status(to, "/", expected, seen).is_ok();
    assert!([200, 204, 302, 399].iter().all(|seen| right(&[], *seen)));
    assert!([101, 400, 404, 503].iter().all(|seen| !right(&[], *seen)));
    let only = ["200".parse().unwrap(), "404-410".parse().unwrap()];
    assert!(right(&only, 200) && right(&only, 410) && !right(&only, 204));
}

/// Of 65 536 backends many are probed at a time, whatever of them is checked.
#[test]
fn a_probe_takes_little_memory() {
    let endpoint = Endpoint::new(IpAddr::from([192, 0, 2, 1]));
    let probe = probe(&Check::Icmp, &endpoint, Duration::from_secs(1));
    assert!(size_of_val(&probe) <= 2048, "{} octets", size_of_val(&probe));
}
