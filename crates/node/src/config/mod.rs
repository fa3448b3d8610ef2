//! Configuration in two stages: [`raw`] is the file as written, [`Config`] is what the roles work with.
//!
//! A file is refused as a whole and with everything that is wrong in it at once, each problem with its path, its line
//! and a way out. Secrets are read here and nowhere else.

mod balancer;
mod checks;
mod controller;
mod gateway;
mod mapserver;
pub mod raw;
mod read;
mod secret;
mod section;
pub mod services;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use balancer::{Balancer, NeighbourSource, ServicesFile};
use checks::Checks;
pub use controller::{Controller, Edge, LoadSource, Service, Source};
pub use gateway::{Eid, Gateway, Interface, MapServerPeer};
pub use mapserver::{MapServer, Site, SitePrefix, Subscriber};
pub use raw::{Algorithm, Hook, InterfaceRole, LogFormat, NonceCheck, OnStop, XdpMode};
pub use secret::{Secret, SecretError};
pub use section::{Field, Section};
use zeroize::Zeroizing;

/// Everything one process needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[node]`
    pub node: Node,
    /// `[log]`
    pub log: Log,
    /// `[http]`
    pub http: Http,
    /// `[gateway]`
    pub gateway: Option<Gateway>,
    /// `[mapserver]`
    pub mapserver: Option<MapServer>,
    /// `[controller]`
    pub controller: Option<Controller>,
    /// `[balancer]`
    pub balancer: Option<Balancer>,
}

/// The node itself.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name in logs, metrics and pins: letters, digits and `-`, at most 63.
    pub name: String,
    /// Directory for what must survive a restart.
    pub state_dir: PathBuf,
}

/// Logs.
#[derive(Clone, Debug)]
pub struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// A level, or directives per module.
    pub level: String,
}

/// The API.
#[derive(Clone, Debug)]
pub struct Http {
    /// Where it listens; without a token always a loopback address.
    pub listen: SocketAddr,
    /// Bearer token.
    pub token: Option<Secret>,
}

/// A key that two LISP nodes share.
#[derive(Clone, Debug)]
pub struct SharedKey {
    /// Number of the key in messages.
    pub key_id: u8,
    /// What is computed with it.
    pub algorithm: Algorithm,
    /// The key.
    pub secret: Secret,
}

impl SharedKey {
    /// The key as the protocol machines take it.
    #[must_use]
    pub fn lisp(&self) -> lisp::auth::Key {
        let algorithm = match self.algorithm {
            Algorithm::HmacSha256 => lisp::auth::Algorithm::HmacSha256,
            Algorithm::HmacSha256Hkdf => lisp::auth::Algorithm::HmacSha256Hkdf,
        };
        let secret = Zeroizing::new(self.secret.expose().to_vec());
        lisp::auth::Key::new(self.key_id, algorithm, secret).expect("key files of no length are refused")
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, e.g. `mapserver.site[1].eid_prefixes[0].prefix`; empty for the file as a whole.
    pub path: String,
    /// The file, if it is another one than the one that was read: one that it names.
    pub file: Option<PathBuf>,
    /// Line of the file, where it can be told.
    pub line: Option<usize>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Everything that is wrong with a file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, if it was one.
    pub file: Option<PathBuf>,
    /// In the order of the file's sections.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            if let Some(file) = problem.file.as_ref().or(self.file.as_ref()) {
                write!(f, "{}: ", file.display())?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads a file and the secrets it names; relative paths start at the file's directory.
    ///
    /// # Errors
    /// Everything that is wrong at once.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let whole = |message| {
            let problem = Problem { path: String::new(), file: None, line: None, message };
            ConfigError { file: Some(file.to_owned()), problems: vec![problem] }
        };
        let text = std::fs::read_to_string(file).map_err(|e| whole(format!("cannot read the file: {e}")))?;
        let directory = file.parent().unwrap_or_else(|| Path::new(""));
        Self::parse(&text, directory).map_err(|mut error| {
            error.file = Some(file.to_owned());
            error
        })
    }

    /// Reads a text; relative paths in it start at `directory`.
    ///
    /// # Errors
    /// Everything that is wrong at once.
    pub fn parse(text: &str, directory: &Path) -> Result<Self, ConfigError> {
        let read::Read { file, problems, lines } = read::read::<raw::File>(text);
        let mut checks = Checks::new(directory, problems);
        let config = file.and_then(|file| checks.config(file));
        match (config, checks.finish(&lines)) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(ConfigError { file: None, problems }),
        }
    }
}

impl Checks {
    fn config(&mut self, file: raw::File) -> Option<Config> {
        let node = self.node(file.node);
        let log = self.log(file.log);
        let http = self.http(file.http);
        let gateway = file.gateway.map(|gateway| self.gateway(gateway));
        let mapserver = file.mapserver.map(|mapserver| self.mapserver(mapserver));
        let controller = file.controller.map(|controller| self.controller(controller));
        let balancer = file.balancer.map(|balancer| self.balancer(balancer));
        if gateway.is_none() && mapserver.is_none() && controller.is_none() && balancer.is_none() {
            self.problem("", "no role: add a section [gateway], [mapserver], [controller] or [balancer]");
        }
        if gateway.is_some() && balancer.is_some() {
            self.problem("balancer", "cannot share a process with [gateway]; give it a file of its own");
        }
        Some(Config {
            node: node?,
            log: log?,
            http: http?,
            gateway: transpose(gateway)?,
            mapserver: transpose(mapserver)?,
            controller: transpose(controller)?,
            balancer: transpose(balancer)?,
        })
    }

    fn node(&mut self, node: raw::Node) -> Option<Node> {
        let name = self.name("node.name", node.name);
        let state_dir = self.path("node.state_dir", &node.state_dir);
        Some(Node { name: name?, state_dir: state_dir? })
    }

    fn log(&mut self, log: raw::Log) -> Option<Log> {
        const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
        let known = |directive: &str| {
            let level = directive.rsplit('=').next().unwrap_or(directive);
            LEVELS.contains(&level.trim().to_ascii_lowercase().as_str())
        };
        if !log.level.split(',').all(known) {
            let message = format!("`{}` is not a level; expected one of {}", log.level, LEVELS.join(", "));
            self.problem("log.level", message + ", or per module: info,lisp=debug");
            return None;
        }
        Some(Log { format: log.format, level: log.level })
    }

    fn http(&mut self, http: raw::Http) -> Option<Http> {
        let listen: Option<SocketAddr> =
            self.parse("http.listen", &http.listen, "ADDRESS:PORT, e.g. 127.0.0.1:9341");
        let token = http.token_file.as_ref().map(|file| self.token("http.token_file", file));
        if let (Some(listen), None) = (listen, &token)
            && !listen.ip().is_loopback()
        {
            let message = format!("required because http.listen {listen} can be reached from elsewhere");
            self.problem("http.token_file", message + "; name a file with a token, or listen on 127.0.0.1");
            return None;
        }
        Some(Http { listen: listen?, token: transpose(token)? })
    }
}

/// `None`: something was wrong; `Some(None)`: was not there.
fn transpose<T>(checked: Option<Option<T>>) -> Option<Option<T>> {
    match checked {
        None => Some(None),
        Some(None) => None,
        Some(Some(value)) => Some(Some(value)),
    }
}

#[cfg(test)]
mod tests;
