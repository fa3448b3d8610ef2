use super::*;

const SERVICES: &str = r#"
[[vips]]
name = "web"
address = "192.0.2.10"
port = 80
segment = "802.1q:100"
table_size = 65521
drain = "5m"
[vips.health]
kind = "http"
path = "/healthz"
host = "example.net"
status = ["200-299"]
[[vips.backends]]
name = "web1"
address = "10.0.0.11"
mac = "02:00:00:00:00:0B"
[[vips.backends]]
name = "web2"
address = "10.0.0.12"
weight = 0
segment = "802.1q:101"
[[vips]]
name = "dns"
address = "2001:db8::53"
port = 53
protocol = "udp"
hash = "addresses"
[[vips]]
name = "tenant"
address = "192.0.2.10"
port = 443
segment = "vxlan:5000"
[[vips.backends]]
name = "t1"
address = "10.0.0.13"
mac = "02:00:00:00:00:0d"
vtep = "10.9.0.1"
"#;

const VTEP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 9));

#[test]
fn a_document_is_read() {
    let vips = parse(SERVICES, Some(&[VTEP])).unwrap();
    let [web, dns, tenant] = vips.as_slice() else { panic!("{vips:?}") };
    assert_eq!(web.id.to_string(), "192.0.2.10:80/tcp@802.1q:100");
    assert_eq!(web.table_size.map(TableSize::get), Some(65_521));
    assert_eq!(web.drain, Duration::from_secs(300));
    let health = web.health.clone().unwrap();
    let (path, status) = ("/healthz".to_owned(), vec!["200-299".parse().unwrap()]);
    assert_eq!(health.check, Check::Http { port: 80, path, host: Some("example.net".into()), status });
    assert_eq!((health.rise, health.fall, health.interval), (2, 3, Duration::from_secs(2)));
    assert_eq!(web.backends[0].mac, Some([2, 0, 0, 0, 0, 11]));
    assert_eq!(web.backends[0].segment, web.id.segment);
    assert_eq!((web.backends[1].weight, web.backends[1].mac), (0, None));
    assert_eq!(web.backends[1].segment.to_string(), "802.1q:101");
    assert_eq!((dns.hash, dns.echo, dns.health.as_ref()), (HashBy::Addresses, true, None));
    assert_eq!(tenant.backends[0].vtep, Some("10.9.0.1".parse().unwrap()));
}

#[test]
fn what_is_written_is_read_back() {
    let vips = parse(SERVICES, None).unwrap();
    let written = raw::Services { generation: None, vips: vips.iter().map(|v| v.written.clone()).collect() };
    assert_eq!(parse(&written.to_toml(), None).unwrap(), vips);
    let json = serde_json::to_value(&written).unwrap();
    assert_eq!(check(from_json::<raw::Services>(json).unwrap().vips, None).unwrap(), vips);
}

#[test]
fn refusals() {
    let cases = [
        ("name = \"web\"", "name = \"\"", "vips[0].name", "required: letters, digits"),
        ("name = \"dns\"", "name = \"web\"", "vips[1].name", "another VIP `web`"),
        (
            "address = \"192.0.2.10\"",
            "address = \"224.0.0.1\"",
            "vips[0].address",
            "not the address of one node",
        ),
        ("port = 80", "port = 0", "vips[0].port", "required: the port that clients send to"),
        ("port = 80", "port = 65536", "vips[0].port", "a whole number from 0 to 65535"),
        ("port = 80", "prt = 80", "vips[0].prt", "did you mean `port`"),
        ("protocol = \"udp\"", "protocol = \"icmp\"", "vips[1].protocol", "unknown word `icmp`"),
        ("\"802.1q:100\"", "\"802.1q:4095\"", "vips[0].segment", "a VLAN id is from 1 to 4094"),
        ("\"802.1q:101\"", "\"none\"", "vips[0].backends[1].segment", "not of the same kind as the VIP's"),
        ("65521", "65520", "vips[0].table_size", "not a prime number, the next one is 65521"),
        ("\"5m\"", "\"61m\"", "vips[0].drain", "out of range: 0s to 1h"),
        ("\"/healthz\"", "\"healthz\"", "vips[0].health.path", "not a path"),
        ("kind = \"http\"", "kind = \"tcp\"", "vips[0].health.path", "no meaning with kind = \"tcp\""),
        ("\"200-299\"", "\"299-200\"", "vips[0].health.status[0]", "not a status or a range"),
        ("\"example.net\"", "\"a b\"", "vips[0].health.host", "not a host"),
        (
            "kind = \"http\"\npath = \"/healthz\"",
            "kind = \"icmp\"\nport = 7",
            "vips[0].health.port",
            "no meaning",
        ),
        (
            "kind = \"http\"",
            "kind = \"http\"\ntimeout = \"3s\"",
            "vips[0].health.timeout",
            "longer than interval, 2s",
        ),
        ("kind = \"http\"", "kind = \"http\"\nrise = 0", "vips[0].health.rise", "1 to 100"),
        ("02:00:00:00:00:0B", "02:00:00:00:00", "vips[0].backends[0].mac", "not a MAC address"),
        (
            "02:00:00:00:00:0B",
            "03:00:00:00:00:0b",
            "vips[0].backends[0].mac",
            "not the MAC address of one node",
        ),
        ("weight = 0", "weight = 65536", "vips[0].backends[1].weight", "0 to 65535"),
        ("name = \"web2\"", "name = \"web1\"", "vips[0].backends[1]", "same name as vips[0].backends[0]"),
        ("vtep = \"10.9.0.1\"", "", "vips[2].backends[0].vtep", "required with segment = \"vxlan:5000\""),
        ("mac = \"02:00:00:00:00:0d\"", "", "vips[2].backends[0].mac", "required behind a tunnel"),
        ("\"10.9.0.1\"", "\"2001:db8::1\"", "vips[2].backends[0].vtep", "balancer.vteps has no address"),
        (
            "segment = \"vxlan:5000\"",
            "segment = \"vxlan:5000\"\n[vips.health]\nkind = \"arp\"",
            "vips[2].health.kind",
            "arp does not reach into vxlan:5000",
        ),
        ("weight = 0", "vtep = \"10.9.0.1\"", "vips[0].backends[1].vtep", "no meaning with segment"),
    ];
    for (from, to, path, words) in cases {
        assert!(SERVICES.contains(from), "the case is out of date: {from}");
        let problems = parse(&SERVICES.replacen(from, to, 1), Some(&[VTEP])).expect_err(to);
        let found = problems.iter().find(|p| p.path == path && p.message.contains(words));
        assert!(
            found.is_some_and(|p| p.line.is_some()),
            "{from} -> {to}: expected {path}: {words}, got {problems:?}"
        );
    }
}

#[test]
fn two_vips_cannot_be_one() {
    let more = "[[vips]]\nname = \"more\"\naddress = \"2001:db8::53\"\nport = 53\nprotocol = \"udp\"\n";
    let problems = parse(&format!("{SERVICES}{more}"), None).unwrap_err();
    assert_eq!(problems[0].message, "same address, port, protocol and segment as VIP `dns`");
    let more = more.replace("port = 53", "port = 54\nhash = \"addresses\"");
    let problems = parse(&format!("{SERVICES}{more}"), None).unwrap_err();
    assert!(problems[0].message.contains("fragments for 2001:db8::53 go to VIP `dns`"), "{problems:?}");
}

#[test]
fn one_vip_is_checked_beside_the_others() {
    let vips = parse(SERVICES, None).unwrap();
    let mut web = vips[0].written.clone();
    web.backends[0].mac = Some("x".into());
    web.port = 0;
    let problems = check_one(web.clone(), vips[1..].iter(), None).unwrap_err();
    let paths: Vec<&str> = problems.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(paths, ["port", "backends[0].mac"]);
    web = vips[0].written.clone();
    web.name = "dns".into();
    assert_eq!(check_one(web, vips[1..].iter(), None).unwrap_err()[0].path, "name");
}

#[test]
fn requests_are_refused_with_every_path() {
    let body = serde_json::json!({
        "name": "web", "adress": "192.0.2.10", "port": "80", "table_size": null,
        "backends": [null, {"name": "web1", "weight": -1}],
    });
    let problems = from_json::<raw::Vip>(body).unwrap_err();
    let mut paths: Vec<&str> = problems.iter().map(|p| p.path.as_str()).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["adress", "backends[0]", "backends[1].weight", "port"]);
    assert_eq!(from_json::<raw::Vip>(serde_json::json!([])).unwrap_err()[0].message, "expected an object");
}

#[test]
fn documents_are_told_from_configurations() {
    assert!(is_services(SERVICES));
    assert!(is_services("vips = 7"));
    assert!(!is_services("[node]\nname = \"a\"\n[balancer]\n"));
    assert!(!is_services("[[vips"));
}
