use super::*;
use std::os::unix::fs::PermissionsExt as _;

/// A directory with a key (0600) and a token (0600).
fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [("key", "edge-secret-1\n"), ("token", "0123456789abcdef\n"), ("short", "abc")] {
        std::fs::write(dir.path().join(name), content).unwrap();
        std::fs::set_permissions(dir.path().join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    std::fs::write(dir.path().join("open"), "edge-secret-1").unwrap();
    std::fs::set_permissions(dir.path().join("open"), std::fs::Permissions::from_mode(0o644)).unwrap();
    dir
}

const GATEWAY: &str = r#"
[node]
name = "client-gateway"
state_dir = "state"
[http]
listen = "10.0.1.1:9341"
token_file = "token"
[gateway]
rlocs = ["10.0.1.1", "2001:db8::1"]
xtr_id = "000102030405060708090a0b0c0d0e0f"
site_id = 1
map_resolvers = ["10.0.0.10", "2001:db8::10"]
eid_space = ["10.100.0.0/16", "[7]10.200.0.0/16"]
subscribe = ["10.100.0.1/32"]
flow_idle = "1m"
[[gateway.map_server]]
address = "10.0.0.10"
key_id = 1
key_file = "key"
[gateway.pubsub]
key_id = 2
algorithm = "hmac-sha-256-128"
key_file = "key"
[[gateway.interface]]
name = "eth1"
[[gateway.interface]]
name = "eth0"
role = "underlay"
[[gateway.eid]]
prefix = "10.200.0.0/24"
interface = "eth1"
ttl = "2m"
"#;

const MAPSERVER: &str = r#"
[node]
name = "control"
[mapserver]
listen = ["10.0.0.10"]
[[mapserver.site]]
name = "edges"
site_id = 2
key_id = 1
key_file = "key"
eid_prefixes = [{ prefix = "10.100.0.0/16" }]
[[mapserver.subscriber]]
name = "client-gateway"
xtr_id = "000102030405060708090a0b0c0d0e0f"
key_id = 2
key_file = "key"
"#;

const CONTROLLER: &str = r#"
[node]
name = "control"
[controller]
interval = "1s"
[controller.mapserver]
url = "http://127.0.0.1:9342/"
[[controller.service]]
name = "web"
eid = "10.100.0.1/32"
gateway = "client-gateway"
[controller.service.source]
url = "http://127.0.0.1:9090"
query = "weir_gateway_offered_flows_per_second"
[[controller.service.edge]]
name = "edge1"
rloc = "10.0.2.1"
capacity = 400
[[controller.service.edge]]
name = "edge2"
rloc = "10.0.3.1"
capacity = 800.5
"#;

const BALANCER: &str = r#"
[node]
name = "balancer"
[balancer]
interface = "eth0"
seed = 7
vteps = ["10.0.0.5"]
[[balancer.source]]
segment = "802.1q:200"
address = "10.0.200.5"
"#;

#[test]
fn every_role_is_read() {
    let dir = directory();
    let gateway = Config::parse(GATEWAY, dir.path()).unwrap();
    assert_eq!(gateway.node.state_dir, dir.path().join("state"));
    assert!(gateway.http.token.unwrap().matches(b"0123456789abcdef"));
    let gateway = gateway.gateway.unwrap();
    assert_eq!(gateway.map_resolvers[0], "10.0.0.10:4342".parse().unwrap());
    assert_eq!(gateway.map_resolvers[1], "[2001:db8::10]:4342".parse().unwrap());
    assert_eq!(gateway.eid_space[1].instance_id.0, 7);
    assert_eq!(gateway.identity.xtr_id.0[15], 15);
    assert_eq!(gateway.pubsub.unwrap().lisp().algorithm().id(), 2);
    assert_eq!(gateway.map_servers[0].key.lisp().algorithm().id(), 3);
    assert_eq!(gateway.eids[0].ttl_minutes, 2);
    let mapserver = Config::parse(MAPSERVER, dir.path()).unwrap().mapserver.unwrap();
    assert!(mapserver.sites[0].key.secret.matches(b"edge-secret-1"));
    assert!(mapserver.sites[0].eid_prefixes[0].more_specifics);
    let controller = Config::parse(CONTROLLER, dir.path()).unwrap().controller.unwrap();
    assert_eq!(controller.mapserver_url, "http://127.0.0.1:9342");
    assert_eq!(controller.services[0].edges[1].capacity, 800.5);
    let balancer = Config::parse(BALANCER, dir.path()).unwrap().balancer.unwrap();
    assert_eq!((balancer.seed, balancer.table_memory), (7, 64 << 20));
    let source = balancer.sources[0];
    assert_eq!(
        (source.segment.to_string(), source.address.to_string()),
        ("802.1q:200".into(), "10.0.200.5".into())
    );
}

#[test]
fn what_is_written_is_read_back() {
    let dir = directory();
    for text in [GATEWAY, MAPSERVER, CONTROLLER, BALANCER] {
        let file: raw::File = toml::from_str(text).unwrap();
        let written = file.to_toml();
        assert_eq!(toml::from_str::<raw::File>(&written).unwrap(), file, "{written}");
        Config::parse(&written, dir.path()).unwrap();
    }
}

/// `(text replaced, its replacement, path of the problem, words in its message)`
type Case = (&'static str, &'static str, &'static str, &'static str);

#[track_caller]
fn refused(text: &str, cases: &[Case]) {
    let dir = directory();
    for (from, to, path, words) in cases {
        assert!(text.contains(from), "the case is out of date: {from}");
        let changed = text.replacen(from, to, 1);
        let error = Config::parse(&changed, dir.path()).expect_err(to);
        let found = error.problems.iter().find(|p| p.path == *path && p.message.contains(words));
        assert!(found.is_some(), "{from} -> {to}: expected {path}: …{words}…, got\n{error}");
        assert_eq!(error.problems.len(), 1, "{from} -> {to}:\n{error}");
    }
}

#[test]
fn gateway_refusals() {
    refused(
        GATEWAY,
        &[
            ("name = \"client-gateway\"", "name = \"client gateway\"", "node.name", "letters, digits"),
            ("name = \"client-gateway\"", "nam = 1\nname = \"a\"", "node.nam", "did you mean `name`"),
            ("token_file = \"token\"", "", "http.token_file", "can be reached from elsewhere"),
            ("token_file = \"token\"", "token_file = \"short\"", "http.token_file", "expected 16 to"),
            ("listen = \"10.0.1.1:9341\"", "listen = \"10.0.1.1\"", "http.listen", "ADDRESS:PORT"),
            ("[\"10.0.1.1\", ", "[\"224.0.0.1\", ", "gateway.rlocs[0]", "not the address of one node"),
            ("\"2001:db8::1\"", "\"10.0.1.1\"", "gateway.rlocs[1]", "same address as gateway.rlocs[0]"),
            ("\"2001:db8::1\"", "1", "gateway.rlocs[1]", "expected a string"),
            (
                "\"2001:db8::1\"",
                "\"::2\", \"::3\", \"::4\", \"::5\", \"::6\", \"::7\", \"::8\", \"::9\"",
                "gateway.rlocs",
                "at most 8",
            ),
            ("0d0e0f", "0d0e0", "gateway.xtr_id", "32 hexadecimal"),
            ("site_id = 1", "site_id = -1", "gateway.site_id", "expected a whole number"),
            (
                "\"10.0.0.10\", \"2",
                "\"10.0.0.10:4343\", \"2",
                "gateway.map_resolvers[0]",
                "not an IP address",
            ),
            ("\"10.100.0.0/16\"", "\"10.100.0.0/33\"", "gateway.eid_space[0]", "longer than the 32 bits"),
            ("\"10.100.0.0/16\"", "\"10.101.0.0/16\"", "gateway.subscribe[0]", "outside gateway.eid_space"),
            ("[7]", "[16777216]", "gateway.eid_space[1]", "24 bits"),
            ("\"10.100.0.1/32\"", "\"10.100.0.1/24\"", "gateway.subscribe[0]", "write 10.100.0.0/24"),
            ("flow_idle = \"1m\"", "flow_idle = \"1\"", "gateway.flow_idle", "not a duration"),
            ("flow_idle = \"1m\"", "flow_idle = \"1ms\"", "gateway.flow_idle", "out of range: 1s to 1day"),
            ("flow_idle", "hook = \"tcx\"\nflow_idle", "gateway.hook", "unknown word"),
            ("flow_idle", "hold_packets = 5000\nflow_idle", "gateway.hold_packets", "more than 4096"),
            ("key_id = 1", "key_id = 256", "gateway.map_server[0].key_id", "0 to 255"),
            ("key_file = \"key\"", "key_file = \"open\"", "gateway.map_server[0].key_file", "chmod 600"),
            ("key_file = \"key\"", "key_file = \"absent\"", "gateway.map_server[0].key_file", "cannot read"),
            ("key_file = \"key\"", "", "gateway.map_server[0].key_file", "required"),
            ("role = \"underlay\"", "", "gateway.interface", "role \"underlay\""),
            ("name = \"eth0\"", "name = \"a-much-too-long-name\"", "gateway.interface[1].name", "at most 15"),
            ("name = \"eth0\"", "name = \"eth1\"", "gateway.interface[1]", "same name"),
            ("interface = \"eth1\"", "interface = \"eth0\"", "gateway.eid[0].interface", "role \"eid\""),
            ("ttl = \"2m\"", "ttl = \"90s\"", "gateway.eid[0].ttl", "whole minutes"),
            (
                "ttl = \"2m\"",
                "next_hop = \"2001:db8::2\"",
                "gateway.eid[0].next_hop",
                "another address family",
            ),
        ],
    );
}

#[test]
fn mapserver_refusals() {
    refused(
        MAPSERVER,
        &[
            ("[\"10.0.0.10\"]", "[]", "mapserver.listen", "required"),
            (
                "eid_prefixes = [{ prefix = \"10.100.0.0/16\" }]",
                "",
                "mapserver.site[0].eid_prefixes",
                "required",
            ),
            (
                "\"10.100.0.0/16\"",
                "\"10.100.0.0\\\\16\"",
                "mapserver.site[0].eid_prefixes[0].prefix",
                "not an IP prefix",
            ),
            ("\"10.100.0.0/16\"", "\"\"", "mapserver.site[0].eid_prefixes[0].prefix", "required"),
            (
                "{ prefix = \"10.100.0.0/16\" }",
                "{ prefix = \"10.100.0.0/16\" }, { prefix = \"10.100.0.0/16\" }",
                "mapserver.site[0].eid_prefixes[1]",
                "can belong to one site only",
            ),
            (
                "{ prefix =",
                "{ prefixes = 1, prefix =",
                "mapserver.site[0].eid_prefixes[0].prefixes",
                "`prefix`",
            ),
            ("0d0e0f", "0d0e0g", "mapserver.subscriber[0].xtr_id", "32 hexadecimal"),
        ],
    );
}

#[test]
fn controller_refusals() {
    refused(
        CONTROLLER,
        &[
            ("\"1s\"", "\"99ms\"", "controller.interval", "out of range: 100ms to 1h"),
            (
                "http://127.0.0.1:9342/",
                "https://127.0.0.1:9342",
                "controller.mapserver.url",
                "not a base URL",
            ),
            (
                "query = ",
                "max_age = \"1d\"\nquery = ",
                "controller.service[0].source.max_age",
                "out of range",
            ),
            (
                "query = \"weir_gateway_offered_flows_per_second\"",
                "",
                "controller.service[0].source.query",
                "required",
            ),
            (
                "[[controller.service.edge]]",
                "kind = \"gateway\"\n[[controller.service.edge]]",
                "controller.service[0].source.query",
                "no meaning",
            ),
            ("capacity = 400", "capacity = nan", "controller.service[0].edge[0].capacity", "greater than 0"),
            ("10.0.3.1", "10.0.2.1", "controller.service[0].edge[1]", "same rloc"),
            (
                "gateway = \"client-gateway\"",
                "dead_band = 1.0",
                "controller.service[0].dead_band",
                "not a share",
            ),
        ],
    );
}

#[test]
fn balancer_refusals() {
    refused(
        BALANCER,
        &[
            ("interface = \"eth0\"", "", "balancer.interface", "required: the name of an interface"),
            ("seed = 7", "mode = \"offload\"", "balancer.mode", "unknown word"),
            ("seed = 7", "seed = -1", "balancer.seed", "a whole number from 0 to 4294967295"),
            ("seed = 7", "flow_entries = 9", "balancer.flow_entries", "1024 to 67108864"),
            ("seed = 7", "table_memory_mib = 65", "balancer.table_memory_mib", "1 to 64"),
            ("seed = 7", "services = \"absent.toml\"", "", "cannot read the file"),
            ("10.0.0.5\"", "10.0.0.5\", \"10.0.0.5\"", "balancer.vteps[1]", "same address"),
            ("segment = \"802.1q:200\"\n", "", "balancer.source[0].segment", "required: none, 802.1q:VID"),
            ("802.1q:200", "802.1q:4095", "balancer.source[0].segment", "802.1q:4095"),
            ("802.1q:200", "vxlan:7", "balancer.source[0].segment", "is a tunnel"),
            ("10.0.200.5", "10.0.200.0/24", "balancer.source[0].address", "is not an IP address"),
            ("10.0.200.5", "::1", "balancer.source[0].address", "loopback"),
            (
                "10.0.200.5\"",
                "10.0.200.5\"\n[[balancer.source]]\nsegment = \"802.1q:200\"\naddress = \"10.0.200.6\"",
                "balancer.source[1]",
                "same segment and address family as balancer.source[0]",
            ),
            (
                "\"10.0.0.5\"",
                "\"::1\", \"::2\", \"::3\", \"::4\", \"::5\"",
                "balancer.vteps",
                "at most 4 are supported",
            ),
        ],
    );
}

#[test]
fn a_gateway_and_a_balancer_are_two_processes() {
    let text = format!("{GATEWAY}[balancer]\ninterface = \"eth2\"\n");
    let error = Config::parse(&text, directory().path()).unwrap_err();
    assert_eq!(error.problems[0].path, "balancer");
    assert!(error.to_string().contains("a file of its own"), "{error}");
}

#[test]
fn what_is_wrong_with_the_vips_is_said_with_their_file() {
    let dir = directory();
    let vips = "[[vips]]\nname = \"web\"\nport = 80\naddress = \"x\"\n[[vips]]\nnam = 1\n";
    std::fs::write(dir.path().join("vips.toml"), vips).unwrap();
    let text = BALANCER.replace("seed = 7", "services = \"vips.toml\"\nseeed = 7");
    let said = Config::parse(&text, dir.path()).unwrap_err().to_string();
    let vips = dir.path().join("vips.toml").display().to_string();
    for line in [
        "line 7: balancer.seeed: unknown key; did you mean `seed`?".to_owned(),
        format!("{vips}: line 4: vips[0].address: `x` is not an IP address"),
        format!("{vips}: line 6: vips[1].nam: unknown key; did you mean `name`?"),
        format!("{vips}: line 5: vips[1].port: required: the port that clients send to, 1 to 65535"),
    ] {
        assert!(said.lines().any(|found| found == line), "{line} is missing in\n{said}");
    }
}

#[test]
fn everything_wrong_is_said_at_once_with_lines() {
    let dir = directory();
    let text = "[node]\nname = \"\"\nstatedir = \"x\"\n[mapserver]\nlisten = [\"x\", 1]\n\n[[mapserver.site]]\n\
                eid_prefixes = [{ prefix = \"10.0.0.0/8\" }, { prefix = \"10.0.0.0/99\" }]\n[controler]\n";
    let error = Config::parse(text, dir.path()).unwrap_err();
    let found: Vec<(Option<usize>, &str)> =
        error.problems.iter().map(|p| (p.line, p.path.as_str())).collect();
    let expected = [
        (Some(3), "node.statedir"),
        (Some(5), "mapserver.listen[1]"),
        (Some(9), "controler"),
        (Some(2), "node.name"),
        (Some(5), "mapserver.listen[0]"),
        (Some(7), "mapserver.site[0].name"),
        (Some(7), "mapserver.site[0].key_file"),
        (Some(8), "mapserver.site[0].eid_prefixes[1].prefix"),
    ];
    for problem in expected {
        assert!(found.contains(&problem), "{problem:?} is missing in\n{error}");
    }
    assert_eq!(found.len(), expected.len(), "{error}");
}

#[test]
fn a_file_without_a_role_is_refused() {
    let error = Config::parse("[node]\nname = \"a\"", Path::new("")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no role: add a section [gateway], [mapserver], [controller] or [balancer]"
    );
}

#[test]
fn secrets_are_never_printed() {
    let dir = directory();
    let text = format!("{:?}", Config::parse(GATEWAY, dir.path()).unwrap());
    assert!(!text.contains("edge-secret") && !text.contains("0123456789abcdef"), "{text}");
}

proptest::proptest! {
    /// Whatever is in the file, it is read or refused with at least one problem; nothing panics or runs on.
    #[test]
    fn any_text_is_read_or_refused(
        which in 0..4_usize,
        cut in proptest::collection::vec((proptest::num::usize::ANY, "[ -~]{0,12}|\\PC{0,3}"), 1..6),
    ) {
        let mut lines: Vec<String> = [GATEWAY, MAPSERVER, CONTROLLER, BALANCER][which].lines().map(str::to_owned).collect();
        for (at, text) in cut {
            let line = at % lines.len();
            match at % 5 {
                0 => drop(lines.remove(line)),
                1 => lines[line] = text,
                2 => lines[line] = format!("{} = {text}", lines[line].split('=').next().unwrap_or_default()),
                3 => lines[line].push_str(&text),
                _ => lines.insert(line, text),
            }
        }
        if let Err(error) = Config::parse(&lines.join("\n"), Path::new("/nonexistent")) {
            proptest::prop_assert!(!error.problems.is_empty());
        }
    }
}

#[test]
fn limits_of_a_map_server_are_its_defaults_or_as_written() {
    let limits = |more: &str| {
        let text = MAPSERVER.replace("[mapserver]\n", &format!("[mapserver]\n{more}\n"));
        Config::parse(&text, directory().path()).map(|config| config.mapserver.unwrap().limits)
    };
    let defaults = lisp::map_server::Limits::default();
    let found = limits("").unwrap();
    assert_eq!((found.map_request, found.map_reply), (defaults.map_request, defaults.map_reply));
    let found = limits("map_request_rate = 20\nmap_request_burst = 7").unwrap();
    assert_eq!((found.map_request.burst, found.map_request.interval.as_millis()), (7, 50));
    let paths: Vec<String> = limits("map_request_rate = 0\nmap_reply_burst = 1000001")
        .unwrap_err()
        .problems
        .into_iter()
        .map(|problem| problem.path)
        .collect();
    assert_eq!(paths, ["mapserver.map_request_rate", "mapserver.map_reply_burst"]);
}
