//! `weir balancer check-backend`: whether this server is set up for direct server return.

mod evaluate;

use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use dataplane::host::{self, Host, Transport};
use serde::Serialize;

use self::evaluate::{Facts, Finding, Question, Status, evaluate};
use crate::cli::{CheckBackendArgs, Form, ListenerProtocol};
use crate::output::{FAILED, print};
use crate::table::lay_out;

/// Somebody out in the network, in address space that nobody has: the default route leads to them.
const ANYBODY: (IpAddr, IpAddr) = (
    IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
);

#[derive(Serialize)]
struct Answer<'a> {
    vip: IpAddr,
    ready: bool,
    findings: &'a [Finding],
}

pub(crate) fn check_backend(args: &CheckBackendArgs) -> anyhow::Result<ExitCode> {
    let question = question(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")?;
    let findings = evaluate(&question, &runtime.block_on(observe(args))?);
    let ready = findings.iter().all(|finding| finding.status != Status::Error);
    print(&match args.output {
        Form::Json => {
            let answer = Answer { vip: args.vip, ready, findings: &findings };
            serde_json::to_string_pretty(&answer)? + "\n"
        }
        Form::Table => render(&findings),
    })?;
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn question(args: &CheckBackendArgs) -> anyhow::Result<Question> {
    if let Some(client) = args.client {
        anyhow::ensure!(client.is_ipv4() == args.vip.is_ipv4(), "--client is not of the family of --vip");
    }
    Ok(Question {
        vip: args.vip,
        interface: args.interface.clone(),
        segment: args.segment,
        client: args.client,
        port: args.port,
        udp: args.protocol == ListenerProtocol::Udp,
    })
}

async fn observe(args: &CheckBackendArgs) -> anyhow::Result<Facts> {
    let anybody = if args.vip.is_ipv4() { ANYBODY.0 } else { ANYBODY.1 };
    let way_back = host::way_out(args.vip, args.client.unwrap_or(anybody)).await?;
    let transport = match args.protocol {
        ListenerProtocol::Tcp => Transport::Tcp,
        ListenerProtocol::Udp => Transport::Udp,
    };
    let listeners = args.port.map(|_| host::listeners(transport)).transpose()?.unwrap_or_default();
    Ok(Facts { host: Host::observe().await?, way_back, listeners })
}

/// What was seen in a table, below it what to do about it.
fn render(findings: &[Finding]) -> String {
    let mut rows = vec![["STATUS", "CHECK", "SEEN"].map(str::to_owned).to_vec()];
    for finding in findings {
        rows.push(vec![finding.status.word().to_owned(), finding.check.to_owned(), finding.seen.clone()]);
    }
    let mut text = lay_out(&rows);
    for finding in findings.iter().filter(|finding| finding.status != Status::Ok) {
        let _ = write!(text, "\n{}: {}\n", finding.check, finding.why);
        if let Some(mend) = &finding.mend {
            let _ = writeln!(text, "  {mend}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_stands_below_the_table_with_its_cure() {
        let finding = |status, mend: Option<&str>| Finding {
            check: "arp_ignore",
            status,
            seen: "0 on eth0".to_owned(),
            why: "every server answers.".to_owned(),
            mend: mend.map(str::to_owned),
        };
        let text = render(&[
            finding(Status::Ok, None),
            finding(Status::Error, Some("sysctl -w net.ipv4.conf.eth0.arp_ignore=1")),
        ]);
        let expected = "\
STATUS  CHECK       SEEN
ok      arp_ignore  0 on eth0
error   arp_ignore  0 on eth0

arp_ignore: every server answers.
  sysctl -w net.ipv4.conf.eth0.arp_ignore=1
";
        assert_eq!(text, expected);
    }
}
