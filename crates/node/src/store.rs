//! What must survive a restart: a redb file per role, seen as a table of octets.
//!
//! Each role has its own file because each may be a process of its own, and redb lets one process in.
//!
//! Two ways to write: [`Table::write`] returns when the change is on the disk; [`WriteBehind`] takes changes without
//! waiting, lets newer ones replace older ones, and commits them in groups.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition, TableError};
use thiserror::Error;
use tokio::sync::oneshot;

/// One key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);
/// Keys and their new values, `None` to forget one.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Shortest time between two group commits that nobody waits for: a commit is an fsync.
const COMMIT_INTERVAL: Duration = Duration::from_millis(50);

/// The store cannot do its work: the disk's or the operator's fault, never a peer's.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The directory cannot be made.
    #[error("cannot create {path}: {source}")]
    Directory {
        /// `node.state_dir`.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file cannot be opened; another process has it, or it is damaged.
    #[error("cannot open {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the database said.
        source: Box<redb::Error>,
    },
    /// A transaction failed.
    #[error("cannot {action} the store: {source}")]
    Transaction {
        /// "read" or "write".
        action: &'static str,
        /// What the database said.
        source: Box<redb::Error>,
    },
    /// The change could not be written and will be tried again; the log says why.
    #[error("the change could not be written yet, see the log")]
    NotWritten,
}

/// The state directory of a node.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// Octets by octets, the only thing that roles may ask of a store.
pub trait KeyValue: Send + Sync + 'static {
    /// Everything, in the order of the keys.
    ///
    /// # Errors
    /// If it cannot be read; an empty store is not an error.
    fn load(&self) -> Result<Vec<Entry>, StoreError>;

    /// All changes or none, durable on return.
    ///
    /// # Errors
    /// If it cannot be written; the old state is kept.
    fn write(&self, changes: &Changes) -> Result<(), StoreError>;
}

/// What one role keeps.
#[derive(Clone, Debug)]
pub struct Table {
    database: Arc<Database>,
}

const DEFINITION: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("state");

impl Store {
    /// Makes the directory, readable for its owner only, if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| StoreError::Directory { path: directory.to_owned(), source })?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Opens or creates `ROLE.redb`.
    ///
    /// # Errors
    /// If another process has it, or it cannot be read or made.
    pub fn table(&self, role: &str) -> Result<Table, StoreError> {
        let path = self.directory.join(role).with_extension("redb");
        let database = Database::create(&path)
            .map_err(|source| StoreError::Open { path, source: Box::new(source.into()) })?;
        Ok(Table { database: Arc::new(database) })
    }
}

impl Table {
    fn read_all(&self) -> Result<Vec<Entry>, redb::Error> {
        let transaction = self.database.begin_read()?;
        let table = match transaction.open_table(DEFINITION) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let entries = table.iter()?.map(|entry| {
            let (key, value) = entry?;
            Ok((key.value().to_vec(), value.value().to_vec()))
        });
        entries.collect()
    }

    fn write_all(&self, changes: &Changes) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(DEFINITION)?;
            for (key, value) in changes {
                match value {
                    Some(value) => table.insert(key.as_slice(), value.as_slice())?,
                    None => table.remove(key.as_slice())?,
                };
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

impl KeyValue for Table {
    fn load(&self) -> Result<Vec<Entry>, StoreError> {
        self.read_all().map_err(|e| StoreError::Transaction { action: "read", source: Box::new(e) })
    }

    fn write(&self, changes: &Changes) -> Result<(), StoreError> {
        self.write_all(changes).map_err(|e| StoreError::Transaction { action: "write", source: Box::new(e) })
    }
}

/// Takes changes without waiting for the disk. Memory is bounded by the number of keys: newer values replace older.
///
/// Dropping it commits what is pending.
#[derive(Debug)]
pub struct WriteBehind {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    pending: Changes,
    waiting: Vec<oneshot::Sender<Result<(), StoreError>>>,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it holds the lock, and a queue has no invariant that a panic could break.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WriteBehind {
    /// Starts the writing thread.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(table: impl KeyValue) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || write_groups(&table, &of_thread))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Notes a change.
    pub fn put(&self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.put_all(Changes::from([(key, value)]));
    }

    /// Notes changes that belong together: all of them are on the disk or none.
    pub fn put_all(&self, changes: Changes) {
        let mut queue = self.shared.lock();
        let first = queue.pending.is_empty();
        queue.pending.extend(changes);
        drop(queue);
        if first {
            self.shared.changed.notify_one();
        }
    }

    /// Resolves when everything noted so far is on the disk.
    pub fn flushed(&self) -> impl Future<Output = Result<(), StoreError>> + Send + use<> {
        let (sender, receiver) = oneshot::channel();
        self.shared.lock().waiting.push(sender);
        self.shared.changed.notify_one();
        async { receiver.await.unwrap_or(Err(StoreError::NotWritten)) }
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_groups(table: &impl KeyValue, shared: &Shared) {
    loop {
        let mut queue = shared.lock();
        while queue.pending.is_empty() && queue.waiting.is_empty() && !queue.closed {
            queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let nobody_waits = |queue: &mut Queue| queue.waiting.is_empty() && !queue.closed;
        queue = shared
            .changed
            .wait_timeout_while(queue, COMMIT_INTERVAL, nobody_waits)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        let (pending, waiting, closed) =
            (std::mem::take(&mut queue.pending), std::mem::take(&mut queue.waiting), queue.closed);
        drop(queue);
        commit(table, shared, pending, waiting);
        if closed {
            return;
        }
    }
}

fn commit(
    table: &impl KeyValue,
    shared: &Shared,
    pending: Changes,
    waiting: Vec<oneshot::Sender<Result<(), StoreError>>>,
) {
    let result = if pending.is_empty() { Ok(()) } else { table.write(&pending) };
    if let Err(error) = &result {
        tracing::error!(%error, changes = pending.len(), "state not written, it will be tried again");
        let mut queue = shared.lock();
        for (key, value) in pending {
            queue.pending.entry(key).or_insert(value);
        }
    }
    let failed = result.is_err();
    for waiter in waiting {
        // The waiter may have gone away; the commit counts all the same.
        let _ = waiter.send(if failed { Err(StoreError::NotWritten) } else { Ok(()) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn changes_survive_and_newer_replace_older() {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = Store::open(&dir.path().join("a/b")).unwrap();
            let writer = WriteBehind::start(store.table("mapserver").unwrap()).unwrap();
            for nonce in 0_u8..100 {
                writer.put(b"nonce".to_vec(), Some(vec![nonce]));
            }
            writer.put(b"gone".to_vec(), Some(vec![1]));
            writer.flushed().await.unwrap();
            writer.put(b"gone".to_vec(), None);
        }
        let store = Store::open(&dir.path().join("a/b")).unwrap();
        assert_eq!(store.table("mapserver").unwrap().load().unwrap(), [(b"nonce".to_vec(), vec![99])]);
        assert_eq!(store.table("gateway").unwrap().load().unwrap(), []);
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let _first = store.table("gateway").unwrap();
        assert!(matches!(store.table("gateway"), Err(StoreError::Open { .. })));
        store.table("mapserver").unwrap();
    }

    /// Fails as often as told, then stores.
    struct Failing(Mutex<u8>, Arc<Mutex<Changes>>);

    impl KeyValue for Failing {
        fn load(&self) -> Result<Vec<Entry>, StoreError> {
            Ok(Vec::new())
        }

        fn write(&self, changes: &Changes) -> Result<(), StoreError> {
            let mut left = self.0.lock().unwrap();
            if *left > 0 {
                *left -= 1;
                return Err(StoreError::NotWritten);
            }
            self.1.lock().unwrap().extend(changes.clone());
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_failed_write_is_tried_again() {
        let written = Arc::new(Mutex::new(BTreeMap::new()));
        let writer = WriteBehind::start(Failing(Mutex::new(1), Arc::clone(&written))).unwrap();
        writer.put(b"a".to_vec(), Some(b"1".to_vec()));
        assert!(writer.flushed().await.is_err());
        writer.flushed().await.unwrap();
        assert_eq!(written.lock().unwrap().get(b"a".as_slice()), Some(&Some(b"1".to_vec())));
    }
}
