//! The counters per mapping and locator: an array per CPU that programs and user space hash into.

use std::collections::BTreeMap;
use std::io;

use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use bpf_abi::{TRAFFIC_CELLS, TRAFFIC_PROBES, TrafficCell, TrafficKey, TrafficValue, traffic_cell};

use crate::error::DataplaneError;

const NAME: &str = "TRAFFIC";

/// The map `TRAFFIC`, and where in it the keys are. Only one process writes it.
pub struct Counters {
    map: PerCpuArray<MapData, TrafficCell>,
    cells: BTreeMap<TrafficKey, u32>,
    cpus: usize,
}

impl Counters {
    /// Finds the keys that are in the map.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn new(map: PerCpuArray<MapData, TrafficCell>) -> Result<Self, DataplaneError> {
        let cpus =
            aya::util::nr_cpus().map_err(|(file, source)| DataplaneError::system("read", file, source))?;
        let mut counters = Self { map, cells: BTreeMap::new(), cpus };
        for index in 0..TRAFFIC_CELLS {
            let key = counters.cell(index)?.key;
            if key.id != 0 {
                counters.cells.insert(key, index);
            }
        }
        Ok(counters)
    }

    /// Every key that is counted.
    pub fn keys(&self) -> impl Iterator<Item = TrafficKey> {
        self.cells.keys().copied()
    }

    /// Counts `key` from zero on. Counters that exist are left alone: programs are counting into them.
    ///
    /// # Errors
    /// If all cells that the key may be in are taken, or the kernel refuses the write.
    pub fn create(&mut self, key: TrafficKey) -> Result<(), DataplaneError> {
        if self.cells.contains_key(&key) {
            return Ok(());
        }
        for index in (0..TRAFFIC_PROBES).map(|probe| traffic_cell(key, probe)) {
            if self.cell(index)?.key.id == 0 {
                self.set(index, TrafficCell { key, value: TrafficValue::default() })?;
                self.cells.insert(key, index);
                return Ok(());
            }
        }
        Err(DataplaneError::system(
            "counters of",
            format!("{key:?}"),
            io::Error::from(io::ErrorKind::StorageFull),
        ))
    }

    /// Frees the cell of `key`, if it has one.
    ///
    /// # Errors
    /// If the kernel refuses the write.
    pub fn remove(&mut self, key: &TrafficKey) -> Result<(), DataplaneError> {
        if let Some(index) = self.cells.get(key).copied() {
            self.set(index, TrafficCell::default())?;
            self.cells.remove(key);
        }
        Ok(())
    }

    /// What was counted for `key`, over all CPUs; `None` if it is not counted.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn get(&self, key: &TrafficKey) -> Result<Option<TrafficValue>, DataplaneError> {
        self.cells.get(key).map(|index| Ok(self.cell(*index)?.value)).transpose()
    }

    /// A cell with its counters added up.
    fn cell(&self, index: u32) -> Result<TrafficCell, DataplaneError> {
        let values = self.map.get(&index, 0).map_err(|source| DataplaneError::Map { map: NAME, source })?;
        let sum = values.iter().fold(TrafficCell::default(), |sum, cell| TrafficCell {
            key: cell.key,
            value: TrafficValue {
                flows: sum.value.flows.wrapping_add(cell.value.flows),
                packets: sum.value.packets.wrapping_add(cell.value.packets),
                bytes: sum.value.bytes.wrapping_add(cell.value.bytes),
            },
        });
        Ok(sum)
    }

    fn set(&mut self, index: u32, cell: TrafficCell) -> Result<(), DataplaneError> {
        let values = PerCpuValues::try_from(vec![cell; self.cpus])
            .map_err(|source| DataplaneError::system("per-CPU values", NAME, source))?;
        self.map.set(index, values, 0).map_err(|source| DataplaneError::Map { map: NAME, source })
    }
}
