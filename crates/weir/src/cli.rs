//! What can be typed.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dataplane::balancer::Segment;

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
    /// Balance what arrives for a VIP over the servers of a site
    Balancer(BalancerArgs),
    /// Run every role that a file configures, in one process with one API
    #[command(after_help = RUN_EXAMPLES)]
    Run(ServeArgs),
    /// Check configuration files and print everything that is wrong
    ///
    /// Reads the files and the secrets they name, as a role would, and changes nothing. Exits with 0 if all files are
    /// right and with 1 if not.
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckArgs),
    /// Show what is in place
    ///
    /// Each resource belongs to a role: mappings and flows to gateways, registrations, weights, subscriptions and
    /// publications to map servers, services and decisions to controllers. Name the role's API with --server.
    #[command(after_help = GET_EXAMPLES)]
    Get(GetArgs),
    /// Tell why the weights of a service are what they are
    ///
    /// Asks the controller for its last decision about the service: the load it saw, what it wanted for each edge, and
    /// which rule made it change the weights or leave them.
    #[command(after_help = EXPLAIN_EXAMPLES)]
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
  weir get flows --limit 5 -o json | jq '.[].locator'";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  weir explain web
  weir explain web -o json --server http://10.0.0.10:9341";

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
    /// Gateway: hook, interfaces, counters
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

/// `weir explain`.
#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Name of the service in the controller's configuration
    pub(crate) service: String,
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
