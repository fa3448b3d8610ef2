//! The eBPF objects, which this crate's build script makes, and how they get into the kernel.

use std::path::Path;

use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader, include_bytes_aligned};
use bpf_abi::balancer::{BACKENDS, VIP_CACHE_CELLS, VIPS};
use bpf_abi::{EGRESS_CACHE_CELLS, FLOW_CACHE_SETS, NEIGHBOUR_CELLS};

static WEIR: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir.bpf.o"));
static BALANCER_OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/balancer.bpf.o"));
static BENCH: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/bench.bpf.o"));

/// ITR for TC ingress (`SchedClassifier`).
pub const ITR: &str = "weir_itr";
/// ETR for TC ingress (`SchedClassifier`).
pub const ETR: &str = "weir_etr";
/// ITR for XDP (`Xdp`).
pub const ITR_XDP: &str = "weir_itr_xdp";
/// ETR for XDP (`Xdp`).
pub const ETR_XDP: &str = "weir_etr_xdp";
/// Site balancer for XDP (`Xdp`).
pub const BALANCER: &str = "weir_balancer";

/// The maps of the data path's object that outlive a process.
pub const MAPS: [&str; 9] =
    ["INTERFACES", "MAP_CACHE", "SLOTS", "LOCATORS", "FLOWS", "LOCAL_EIDS", "TRAFFIC", "REASONS", "NODE"];

/// The maps of the balancer's object; all of them outlive a process.
pub const BALANCER_MAPS: [&str; 10] = [
    "BALANCER_VIPS",
    "TABLES",
    "BACKENDS",
    "TUNNELS",
    "BALANCED_FLOWS",
    "VIP_COUNTERS",
    "BACKEND_COUNTERS",
    "BALANCER_REASONS",
    "BALANCER_NODE",
    "IDENTITIES",
];

/// Why the kernel has no program of ours.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// Maps could not be made, or pinned ones are of another shape.
    #[error("maps of the data path: {0}")]
    Maps(#[source] EbpfError),
    /// The object has no such program.
    #[error("the object has no program {0}")]
    NoProgram(String),
    /// The verifier or the kernel's configuration refused it.
    #[error("program {name}: {source}")]
    Refused {
        /// Name of the program.
        name: String,
        /// With the verifier's log.
        source: Box<ProgramError>,
    },
}

/// How the data path's maps are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct MapOptions<'a> {
    /// Directory on a bpffs: maps pinned there are re-used, the others are pinned there.
    pub pin_directory: Option<&'a Path>,
    /// Entries of the flow table.
    pub flows: Option<u32>,
}

/// The data path's object with its maps in the kernel; its programs are loaded with [`load_program`].
///
/// # Errors
/// If a map cannot be created, pinned, or re-used.
pub fn load(options: MapOptions<'_>) -> Result<Ebpf, ObjectError> {
    let mut loader = EbpfLoader::new();
    let cpus = u32::try_from(aya::util::nr_cpus().unwrap_or(1)).unwrap_or(1);
    loader.map_max_entries("FLOW_CACHE", cpus.saturating_mul(FLOW_CACHE_SETS));
    loader.map_max_entries("EGRESS_CACHE", cpus.saturating_mul(EGRESS_CACHE_CELLS));
    loader.map_max_entries("NEIGHBOURS", cpus.saturating_mul(NEIGHBOUR_CELLS));
    let ticks = ticks_per_second();
    loader.override_global("TICKS_PER_SECOND", &ticks, true);
    if let Some(flows) = options.flows {
        loader.map_max_entries("FLOWS", flows);
    }
    if let Some(directory) = options.pin_directory {
        for map in MAPS {
            loader.map_pin_path(map, directory.join(map));
        }
    }
    loader.load(WEIR).map_err(ObjectError::Maps)
}

/// How often the kernel's clock ticks: the resolution of its coarse clocks.
fn ticks_per_second() -> u32 {
    const SECOND: i64 = 1_000_000_000;
    let mut tick = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the timespec outlives the call; an error leaves it at zero.
    unsafe { libc::clock_getres(libc::CLOCK_MONOTONIC_COARSE, &raw mut tick) };
    let hertz = SECOND / tick.tv_nsec.max(1);
    // Ticks are 1 to 10 ms; what else is told would only make a cache be believed for too long or not at all.
    u32::try_from(hertz).ok().filter(|hertz| (100..=1024).contains(hertz)).unwrap_or(100)
}

/// How the balancer's maps are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct BalancerMapOptions<'a> {
    /// Directory on a bpffs: maps pinned there are re-used, the others are pinned there.
    pub pin_directory: Option<&'a Path>,
    /// Entries of the flow table.
    pub flows: Option<u32>,
    /// Chunks of all tables together.
    pub chunks: Option<u32>,
}

/// The balancer's object with its maps in the kernel; its program is loaded with [`load_program`].
///
/// # Errors
/// If a map cannot be created, pinned, or re-used.
pub fn load_balancer(options: BalancerMapOptions<'_>) -> Result<Ebpf, ObjectError> {
    let mut loader = EbpfLoader::new();
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    let of_each_cpu =
        [("VIP_CACHE", VIP_CACHE_CELLS as usize), ("VIP_COUNTERS", VIPS), ("BACKEND_COUNTERS", BACKENDS)];
    for (map, entries) in of_each_cpu {
        loader.map_max_entries(map, u32::try_from(cpus.saturating_mul(entries)).unwrap_or(u32::MAX));
    }
    if let Some(flows) = options.flows {
        loader.map_max_entries("BALANCED_FLOWS", flows);
    }
    if let Some(chunks) = options.chunks {
        loader.map_max_entries("TABLES", chunks);
    }
    if let Some(directory) = options.pin_directory {
        for map in BALANCER_MAPS {
            loader.map_pin_path(map, directory.join(map));
        }
    }
    loader.load(BALANCER_OBJECT).map_err(ObjectError::Maps)
}

/// The benchmarks' object: `empty`, `empty_xdp`, `sink`, `sink_xdp`, `generator_xdp`; maps `SINK`, `GENERATOR`.
///
/// # Errors
/// If a map cannot be created.
pub fn load_bench() -> Result<Ebpf, ObjectError> {
    EbpfLoader::new().load(BENCH).map_err(ObjectError::Maps)
}

/// Puts one program into the kernel.
///
/// # Errors
/// If the object has no such program or the kernel refuses it.
pub fn load_program<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, ObjectError> {
    let program = object.program_mut(name).ok_or_else(|| ObjectError::NoProgram(name.to_owned()))?;
    let loaded = match program {
        Program::SchedClassifier(classifier) => classifier.load(),
        Program::Xdp(xdp) => xdp.load(),
        _ => return Err(ObjectError::NoProgram(name.to_owned())),
    };
    match loaded {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
        Err(source) => Err(ObjectError::Refused { name: name.to_owned(), source: Box::new(source) }),
    }
}
