//! How it stands with the port: pure.

use dataplane::balancer::Followed;
use dataplane::netlink::Link;

/// The port as it was seen last, and whether the program is on it.
#[derive(Debug, Default)]
pub(super) struct Port {
    /// `None` if there is no interface of its name; before the first look too, which comes at once.
    pub(super) link: Option<Link>,
    state: State,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    /// A start that succeeds has taken it.
    #[default]
    Taken,
    Away,
    Refused(String),
}

impl Port {
    /// The data path followed it, or why it could not. Returns what it changed to, a label of metrics, if that is news.
    pub(super) fn followed(
        &mut self,
        interface: &str,
        result: Result<Followed, String>,
    ) -> Option<&'static str> {
        let (state, to) = match result {
            Err(why) => (State::Refused(why), "refused"),
            Ok(_) if self.link.is_none() => (State::Away, "away"),
            Ok(Followed::Same | Followed::Away) => (State::Taken, "taken"),
            Ok(Followed::Readdressed) => {
                tracing::info!(interface, "the port has another link-layer address, which is followed");
                self.state = State::Taken;
                return Some("address");
            }
            Ok(Followed::Attached) => {
                tracing::info!(interface, "the program is on the port again");
                self.state = State::Taken;
                return Some("taken");
            }
        };
        let news = self.state != state;
        self.state = state;
        news.then_some(to)
    }

    /// Whether the program is on it.
    pub(super) fn is_taken(&self) -> bool {
        self.state == State::Taken
    }

    /// Name in the API.
    pub(super) const fn word(&self) -> &'static str {
        match self.state {
            State::Taken => "taken",
            State::Away => "away",
            State::Refused(_) => "refused",
        }
    }

    /// Why no frame is balanced; `None` if frames are.
    pub(super) fn trouble(&self, interface: &str) -> Option<String> {
        match &self.state {
            State::Taken => None,
            State::Away => {
                Some(format!("there is no interface {interface}; frames are balanced again when it is back"))
            }
            State::Refused(why) => Some(why.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link { name: "eth0".into(), ifindex: 2, mtu: 1500, mac: [2; 6], kind: None, xdp: None }
    }

    #[test]
    fn what_keeps_frames_from_being_balanced_is_told_once_and_kept() {
        let mut port = Port::default();
        assert_eq!((port.word(), port.trouble("eth0")), ("taken", None));
        assert_eq!(port.followed("eth0", Ok(Followed::Away)), Some("away"));
        assert_eq!(port.followed("eth0", Ok(Followed::Same)), None);
        assert_eq!((port.word(), port.is_taken()), ("away", false));
        assert!(port.trouble("eth0").unwrap().contains("no interface eth0"));
        for (news, why) in
            [(Some("refused"), "taken by 7"), (None, "taken by 7"), (Some("refused"), "taken by 8")]
        {
            assert_eq!(port.followed("eth0", Err(why.to_owned())), news);
            assert_eq!(port.trouble("eth0").as_deref(), Some(why));
        }
        assert_eq!((port.word(), port.is_taken()), ("refused", false));
        assert_eq!(port.followed("eth0", Ok(Followed::Same)), Some("away"), "refused, then removed");
        port.link = Some(link());
        assert_eq!(port.followed("eth0", Ok(Followed::Attached)), Some("taken"));
        assert_eq!(port.followed("eth0", Ok(Followed::Same)), None);
        assert_eq!(port.followed("eth0", Ok(Followed::Readdressed)), Some("address"));
        assert!(port.is_taken());
    }
}
