//! What can be typed.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dataplane::balancer::{PacketKind, Protocol, Segment};
use node::balancer::endpoint::Endpoint;

/// Where a role listens unless told otherwise.
pub(crate) const DEFAULT_SERVER: &str = "http://127.0.0.1:9341";

/// Keeps services on small edge clouds responsive.
///
/// When an edge gets more requests than it serves stably, weir moves the excess to neighbours that have room, under the
/// same service address and without touching clients, and brings it back when the rush is over.
#[derive(Debug, Parser)]
#[command(name = "weir", version, max_term_width = 100, after_help = TOP_EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const TOP_EXAMPLES: &str = "\
Examples:
  weir lab run paper --quick                          see it work on this machine
  weir check /etc/weir/gateway.toml                   every mistake in a file at once
  weir gateway --config /etc/weir/gateway.toml        run a gateway
  weir get weights --server http://10.0.0.10:9341     what the controller wants
  weir explain web                                    why it wants that

Exit codes:
  0   done
  1   failed, or refused by the server; for check: the file has mistakes
  64  the command line is wrong
  78  the configuration of a role is wrong; starting it again cannot help";

/// What weir does.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a gateway: a LISP xTR whose data path is in the kernel
    ///
    /// At the clients it splits new flows over the edges by weight (ITR), at an edge it takes them out of the overlay
    /// (ETR). Needs root, or CAP_NET_ADMIN and CAP_BPF. With on_stop = "keep" the data path goes on working after a
    /// stop, and the next start takes it over without losing a flow.
    #[command(after_help = GATEWAY_EXAMPLES)]
    Gateway(ServeArgs),
    /// Run a map server: who is alive, and which weights hold
    ///
    /// Map-Server and Map-Resolver on UDP port 4342. Gateways register their EID-prefixes with it and subscribe to
    /// those of others; the controller sets weights over its API, and every change is published at once.
    #[command(after_help = MAPSERVER_EXAMPLES)]
    Mapserver(ServeArgs),
    /// Run a controller: offered load in, weights out
    ///
    /// Without fresh data, and when the controller is gone, the last weights stand.
    #[command(after_help = CONTROLLER_EXAMPLES)]
    Controller(ServeArgs),
    /// Run a site balancer: what arrives for a VIP goes to one of its servers
    ///
    /// Layer-2 direct server return by XDP on one port: a frame keeps its addresses and gets the MAC address and VLAN of
    /// the server, which answers the client directly. Needs root, or CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and
    /// CAP_PERFMON. With on_stop = "keep" the data path goes on working after a stop, and the next start takes it over
    /// without losing a flow.
    #[command(
        after_help = BALANCER_EXAMPLES,
        args_conflicts_with_subcommands = true,
        subcommand_negates_reqs = true
    )]
    Balancer(BalancerArgs),
    /// Run every role that a file configures, in one process with one API
    #[command(after_help = RUN_EXAMPLES)]
    Run(ServeArgs),
    /// Check configuration files and print everything that is wrong
    ///
    /// Reads the files and the secrets they name, as a role would, and changes nothing. A balancer's VIPs are checked with
    /// its configuration, or as a file of their own. Exits with 0 if all files are
    /// right and with 1 if not.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Show what is in place
    ///
    /// Each resource belongs to a role: mappings and flows to gateways, registrations, weights, subscriptions and
    /// publications to map servers, services and decisions to controllers, VIPs and backends to balancers. Name the role's API with --server.
    #[command(after_help = GET_EXAMPLES)]
    Get(GetArgs),
    /// Make the VIPs of a file those of a balancer
    ///
    /// Checks the file and puts all of it into force at once; VIPs that are not in it are removed. Those that stay as they
    /// are are not touched. What the balancer takes is stored, and goes before the file that its configuration names.
    #[command(after_help = APPLY_EXAMPLES)]
    Apply(ApplyArgs),
    /// Tell why the weights of a service are what they are, or where a flow goes
    ///
    /// Of a service: asks the controller for its last decision about it, the load it saw, what it wanted for each edge,
    /// and which rule made it change the weights or leave them. Of a flow: asks a balancer what it would do with a packet.
    #[command(after_help = EXPLAIN_EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Explain(ExplainArgs),
    /// Build real topologies on this machine and measure
    Lab {
        #[command(subcommand)]
        command: lab::cli::LabCommand,
    },
    /// Print a completion script for a shell
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions(CompletionsArgs),
    /// Write the man pages and the references of docs/reference
    #[command(hide = true)]
    Docs(DocsArgs),
}

const GATEWAY_EXAMPLES: &str = "\
Examples:
  weir gateway --config /etc/weir/gateway.toml
  weir get mappings                                   what it has resolved
  weir get flows --limit 20                           where flows go
  curl -s http://127.0.0.1:9341/metrics               what it counts";

const MAPSERVER_EXAMPLES: &str = "\
Examples:
  weir mapserver --config /etc/weir/mapserver.toml
  weir get registrations                              who is alive
  weir get weights                                    what the controller wants
  curl -X PUT -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' \\
    -d '{\"eid\":\"10.100.0.1/32\",\"locators\":[{\"rloc\":\"10.0.2.1\",\"priority\":1,\"weight\":100}]}' \\
    http://127.0.0.1:9341/v1/weights                  set weights by hand";

const CONTROLLER_EXAMPLES: &str = "\
Examples:
  weir controller --config /etc/weir/controller.toml
  weir get decisions                                  what it decided
  weir explain web                                    why";

const BALANCER_EXAMPLES: &str = "\
Examples:
  weir balancer --config /etc/weir/balancer.toml
  weir get backends                                   who takes flows, and who does not, and why
  weir explain flow --source 198.51.100.7:40000 --destination 192.0.2.10:80
  weir apply /etc/weir/balancer-services.toml         change VIPs without a restart
  curl -X PUT -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' \\
    -d '{\"address\":\"10.0.100.11\",\"weight\":0}' \\
    http://127.0.0.1:9341/v1/vips/web/backends/web1   drain a backend";

const APPLY_EXAMPLES: &str = "\
Examples:
  weir apply /etc/weir/balancer-services.toml --dry-run
  weir apply /etc/weir/balancer-services.toml --token-file /etc/weir/balancer/token";

const EXPLAIN_FLOW_EXAMPLES: &str = "\
Examples:
  weir explain flow --source 198.51.100.7:40000 --destination 192.0.2.10:80
  weir explain flow --source [2001:db8::7]:40000 --destination [2001:db8::10]:53 --protocol udp
  weir explain flow --source 198.51.100.7:40000 --destination 192.0.2.10:80 --segment 802.1q:100 --first
  weir explain flow --source 198.51.100.7:40000 --destination 192.0.2.10:80 --packet icmp-error
  weir explain flow --source 198.51.100.7 --destination 192.0.2.10 --protocol udp --packet fragment";

const CHECK_BACKEND_EXAMPLES: &str = "\
Examples:
  weir balancer check-backend --vip 192.0.2.10
  weir balancer check-backend --vip 192.0.2.10 --interface eth0 --segment 802.1q:100 --port 80
  weir balancer check-backend --vip 2001:db8::10 -o json | jq -r '.findings[].mend // empty'";

const RUN_EXAMPLES: &str = "\
Examples:
  weir run --config /etc/weir/control.toml            map server and controller on one host";

const CHECK_EXAMPLES: &str = "\
Examples:
  weir check /etc/weir/gateway.toml
  weir check /etc/weir/*.toml && systemctl restart weir-gateway";

const GET_EXAMPLES: &str = "\
Examples:
  weir get mappings
  weir get registrations --server http://10.0.0.10:9341 --token-file /etc/weir/token
  weir get flows --limit 5 -o json | jq '.[].locator'
  weir get backends --token-file /etc/weir/balancer/token";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  weir explain web
  weir explain web -o json --server http://10.0.0.10:9341
  weir explain flow --source 198.51.100.7:40000 --destination 192.0.2.10:80";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  weir completions bash > /usr/share/bash-completion/completions/weir
  weir completions zsh > /usr/share/zsh/site-functions/_weir
  weir completions fish > ~/.config/fish/completions/weir.fish";

/// Running a role.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Configuration file (TOML), see `weir check`
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

/// `weir balancer`.
#[derive(Debug, Args)]
pub(crate) struct BalancerArgs {
    #[command(subcommand)]
    pub(crate) command: Option<BalancerCommand>,
    /// Configuration file (TOML), see `weir check`
    #[arg(short, long, value_name = "FILE", required = true)]
    pub(crate) config: Option<PathBuf>,
    /// Forget what the API has stored, and start with the file that `balancer.services` names
    #[arg(long)]
    pub(crate) reset_from_file: bool,
}

/// What else there is to do with a balancer.
#[derive(Debug, Subcommand)]
pub(crate) enum BalancerCommand {
    /// Check on a server of a VIP whether it is set up for direct server return
    ///
    /// Run it on the server. Looks at interfaces, addresses, routes and settings, says what is wrong with each, why it
    /// matters and which command mends it, and changes nothing. Exits with 0 if nothing is wrong and with 1 if something
    /// is; warnings are not wrong.
    #[command(after_help = CHECK_BACKEND_EXAMPLES)]
    CheckBackend(CheckBackendArgs),
}

/// `weir balancer check-backend`.
#[derive(Debug, Args)]
pub(crate) struct CheckBackendArgs {
    /// Address that clients send to
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) vip: IpAddr,
    /// Port that the balancer's frames arrive at; found by the segment or the way back if not given
    #[arg(long, value_name = "NAME")]
    pub(crate) interface: Option<String>,
    /// Segment of this server in the balancer's configuration, such as 802.1q:100
    #[arg(long, value_name = "SEGMENT", default_value = "none")]
    pub(crate) segment: Segment,
    /// A client, to find the way back to it; the default route if not given
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) client: Option<IpAddr>,
    /// Port that the service has to listen on
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// Protocol of the port
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp", requires = "port")]
    pub(crate) protocol: ListenerProtocol,
    /// Form of the answer
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub(crate) output: Form,
}

/// Protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListenerProtocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// `weir check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Configuration files (TOML)
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
}

/// Whom to ask, and in which form to show the answer.
#[derive(Debug, Args)]
pub(crate) struct ClientArgs {
    /// Base URL of the role's API
    #[arg(long, value_name = "URL", default_value = DEFAULT_SERVER)]
    pub(crate) server: String,
    /// File with the API's bearer token, mode 0600
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Form of the answer
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub(crate) output: Form,
}

/// Form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people
    Table,
    /// What the API answered
    Json,
}

/// What can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Resource {
    /// Gateway: EID-prefixes and the locators that their flows go to
    Mappings,
    /// Gateway: flows and their locators
    Flows,
    /// Gateway: offered load per EID-prefix
    Load,
    /// Gateway: publications it has put into force
    Applied,
    /// Gateway: hook, interfaces, counters; balancer: how everything stands
    Status,
    /// Map server: who has registered what
    Registrations,
    /// Map server: weights set by the controller
    Weights,
    /// Map server: gateways that are told of changes
    Subscriptions,
    /// Map server: the latest changes and their acknowledgements
    Publications,
    /// Controller: services and how they stand
    Services,
    /// Controller: the latest decisions
    Decisions,
    /// Balancer: VIPs as they are desired
    Vips,
    /// Balancer: backends and how they stand
    Backends,
}

/// `weir get`.
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// What to show
    pub(crate) resource: Resource,
    /// At most so many; for flows and decisions
    #[arg(long, value_name = "COUNT")]
    pub(crate) limit: Option<u32>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `weir apply`.
#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// File with VIPs (TOML), see `weir check`
    pub(crate) file: PathBuf,
    /// Say what would change, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `weir explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    #[command(subcommand)]
    pub(crate) what: Option<Explained>,
    /// Name of the service in the controller's configuration
    #[arg(required = true)]
    pub(crate) service: Option<String>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// What is explained beside a service.
#[derive(Debug, Subcommand)]
pub(crate) enum Explained {
    /// Tell what a balancer would do with a packet of a flow now, and why
    ///
    /// Read from the kernel's own maps: the VIP, the flow's hash, its slot in the table and in the one before the last
    /// change, where the flow is remembered, and the backend that it goes to. --packet asks about fragments and ICMP.
    #[command(after_help = EXPLAIN_FLOW_EXAMPLES)]
    Flow(ExplainFlowArgs),
}

/// `weir explain flow`.
#[derive(Debug, Args)]
pub(crate) struct ExplainFlowArgs {
    /// Address and port of the client; the address alone will do where ports do not count
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) source: Endpoint,
    /// Address and port of the VIP; the address alone will do where ports do not count
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) destination: Endpoint,
    /// Protocol of the flow: tcp, udp or sctp
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp")]
    pub(crate) protocol: Protocol,
    /// Segment on which its packets arrive, such as 802.1q:100
    #[arg(long, value_name = "SEGMENT", default_value = "none")]
    pub(crate) segment: Segment,
    /// The packet is one that begins a connection (--packet transport only)
    #[arg(long)]
    pub(crate) first: bool,
    /// Which packet: transport (of the flow), fragment (of one from the client), icmp-error (to the VIP, whoever sends
    /// it, quoting a packet to the client) or echo-request
    #[arg(long, value_name = "KIND", default_value = "transport")]
    pub(crate) packet: PacketKind,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// `weir completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    pub(crate) shell: clap_complete::Shell,
}

/// `weir docs`.
#[derive(Debug, Args)]
pub(crate) struct DocsArgs {
    /// Directory for `man/` and `reference/`
    pub(crate) directory: PathBuf,
}
