//! The control path before everything of ordinary priority.
//!
//! A decision takes a fraction of a millisecond of work in the map server and in the gateway. Where others want the
//! processor too, the waiting for it is many times that, and no nice value bounds it: an ordinary thread goes on to the
//! end of its slice once it runs. So that a flood does not take the processor from the services, a loop that works for
//! long is ordinary until it is calm again.

use std::io;
use std::time::Duration;

use codec::Instant;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::time::MissedTickBehavior;

use crate::clock::{Clock, thread_cpu_time};
use crate::metrics::register;

/// The lowest: in front of ordinary threads, behind everything else that was given a priority on purpose.
const REAL_TIME: libc::c_int = 1;
/// How often the loop's work is looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// Share of one CPU, over a period, that a loop in front of others may use.
const MOST: f64 = 0.25;
/// Share of one CPU below which a loop is calm.
const CALM: f64 = 0.1;
/// How long it is calm before it goes first again.
const CALM_TIME: Duration = Duration::from_secs(10);

/// Where a thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Priority {
    RealTime,
    Ordinary,
}

/// Puts the calling thread in front of all threads of ordinary priority, but not what it starts from now on, for as long
/// as it leaves most of a processor to others. Without permission (`CAP_SYS_NICE` or `LimitRTPRIO=1`) the thread stays
/// what it is. The calling thread must be the only one of its runtime.
pub(crate) fn go_first(registry: &mut Registry, clock: Clock) {
    let gauge = describe(registry);
    match set(Priority::RealTime) {
        Ok(()) => {
            gauge.set(1);
            tracing::info!("the control path goes first (real-time priority {REAL_TIME})");
            tokio::spawn(guard(gauge, clock));
        }
        Err(error) => tracing::info!(%error, "the control path has ordinary priority"),
    }
}

/// Registers the metric.
pub(crate) fn describe(registry: &mut Registry) -> Gauge {
    let help = "1 while the loop of gateway, map server and controller has real-time priority";
    register(registry, "weir_control_real_time", help, Gauge::default())
}

async fn guard(gauge: Gauge, clock: Clock) {
    let mut usage = Usage::new(clock.now(), thread_cpu_time());
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is at once.
    period.tick().await;
    loop {
        period.tick().await;
        let Some(priority) = usage.sample(clock.now(), thread_cpu_time()) else { continue };
        if let Err(error) = set(priority) {
            tracing::warn!(%error, ?priority, "priority of the control path not changed");
            continue;
        }
        gauge.set(i64::from(priority == Priority::RealTime));
        match priority {
            Priority::RealTime => tracing::info!("the control path goes first again"),
            Priority::Ordinary => tracing::warn!(
                percent_of_a_cpu = MOST * 100.0,
                "the control path works for longer than it may in front of others; ordinary priority until it is calm"
            ),
        }
    }
}

fn set(priority: Priority) -> io::Result<()> {
    let (policy, sched_priority) = match priority {
        Priority::RealTime => (libc::SCHED_RR, REAL_TIME),
        Priority::Ordinary => (libc::SCHED_OTHER, 0),
    };
    let parameter = libc::sched_param { sched_priority };
    // Only CAP_SYS_NICE may take the flag away again (sched(7)), so it stays.
    let policy = policy | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the parameter outlives the call; 0 is the calling thread.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a thread used, and what follows for its priority. It starts in front of others.
#[derive(Debug)]
struct Usage {
    priority: Priority,
    /// Of the last sample.
    at: Instant,
    cpu_time: Duration,
    calm_since: Option<Instant>,
}

impl Usage {
    const fn new(now: Instant, cpu_time: Duration) -> Self {
        Self { priority: Priority::RealTime, at: now, cpu_time, calm_since: None }
    }

    /// Takes the CPU time that the thread has used up to now; returns its priority if that is another one.
    fn sample(&mut self, now: Instant, cpu_time: Duration) -> Option<Priority> {
        let passed = now.saturating_since(self.at);
        if passed.is_zero() {
            return None;
        }
        let share = cpu_time.saturating_sub(self.cpu_time).as_secs_f64() / passed.as_secs_f64();
        let since = std::mem::replace(&mut self.at, now);
        self.cpu_time = cpu_time;
        self.calm_since = if share < CALM { self.calm_since.or(Some(since)) } else { None };
        let calm = self.calm_since.is_some_and(|since| now.saturating_since(since) >= CALM_TIME);
        let priority = match self.priority {
            Priority::RealTime if share > MOST => Priority::Ordinary,
            Priority::Ordinary if calm => Priority::RealTime,
            _ => return None,
        };
        self.priority = priority;
        Some(priority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds, of each of which the loop works the given share; what changed, and in which second.
    fn changes(shares: &[f64]) -> Vec<(usize, Priority)> {
        let (mut now, mut cpu_time) = (Instant::from_secs(7), Duration::from_secs(3));
        let mut usage = Usage::new(now, cpu_time);
        let samples = shares.iter().enumerate().filter_map(|(second, share)| {
            now = now + Duration::from_secs(1);
            cpu_time += Duration::from_secs_f64(*share);
            Some((second, usage.sample(now, cpu_time)?))
        });
        samples.collect()
    }

    #[test]
    fn a_loop_with_little_to_do_goes_first() {
        assert_eq!(changes(&[0.0, 0.02, 0.24, 0.09, 0.2, 0.2, 0.0]), []);
    }

    #[test]
    fn a_flood_is_ordinary_until_it_is_over() {
        let flood = [0.01, 0.9, 1.0, 0.9];
        let shares = [flood.as_slice(), &[0.05; 12]].concat();
        assert_eq!(changes(&shares), [(1, Priority::Ordinary), (13, Priority::RealTime)]);
    }

    #[test]
    fn calm_is_counted_from_the_last_second_with_work() {
        let shares = [&[0.5][..], &[0.0; 9], &[0.15], &[0.0; 10], &[0.3]].concat();
        let expected = [(0, Priority::Ordinary), (20, Priority::RealTime), (21, Priority::Ordinary)];
        assert_eq!(changes(&shares), expected);
    }

    #[test]
    fn two_samples_at_one_time_say_nothing() {
        let mut usage = Usage::new(Instant::from_secs(1), Duration::ZERO);
        assert_eq!(usage.sample(Instant::from_secs(1), Duration::from_secs(1)), None);
        assert_eq!(usage.sample(Instant::from_secs(2), Duration::from_secs(1)), Some(Priority::Ordinary));
    }

    #[test]
    fn priority_is_given_up_and_taken_back() {
        let policy = || {
            // SAFETY: takes no pointer; 0 is the calling thread.
            unsafe { libc::sched_getscheduler(0) }
        };
        std::thread::spawn(move || {
            set(Priority::RealTime).unwrap();
            assert_eq!(policy(), libc::SCHED_RR | libc::SCHED_RESET_ON_FORK);
            let started = std::thread::spawn(policy).join().unwrap();
            assert_eq!(started, libc::SCHED_OTHER, "what it starts is ordinary");
            set(Priority::Ordinary).unwrap();
            assert_eq!(policy(), libc::SCHED_OTHER | libc::SCHED_RESET_ON_FORK);
            set(Priority::RealTime).unwrap();
        })
        .join()
        .unwrap();
    }
}
