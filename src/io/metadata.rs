//! A site's management information, in redb: what the site was formatted as, its snapshots, and where old blocks are that they
//! keep. Only plain threads come here.

mod backend;
mod captured;
mod check;
mod executor;
mod lend;
mod marks;
mod reshape;
mod space;
mod store;
mod take;

use backend::Backend;
pub use executor::{MetadataEdges, MetadataExecutor};
pub use marks::ChangedSet;
pub use reshape::Places;
pub use space::{SharedSpace, Space};
use store::StoreError;
pub use store::{RequestPages, Store};

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use crate::base::SiteId;
use crate::base::UpdateNumber;
use crate::core::config::VolumeSpec;
use crate::format::metadata::Captured;
use crate::format::snapshot::SnapshotRecord;

/// Version of everything below; a site formatted by another one is refused.
pub const METADATA_VERSION: u64 = 3;

const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");
const NAMES: TableDefinition<&str, &str> = TableDefinition::new("names");
/// Position in the group's list, to name and blocks.
const VOLUMES: TableDefinition<u16, (&str, u64)> = TableDefinition::new("volumes");

/// What a site is: recorded when it is formatted, compared with its configuration whenever it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SiteRecord {
    pub group: String,
    pub site: String,
    pub id: SiteId,
    pub journal_blocks: u64,
    pub differential_blocks: u64,
    pub volumes: Vec<VolumeSpec>,
}

/// One thing in which a configuration differs from what its site was formatted as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub what: String,
    pub formatted: String,
    pub configured: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} was formatted as {}, the configuration says {}",
            self.what, self.formatted, self.configured
        )
    }
}

impl SiteRecord {
    pub fn differences(&self, configured: &SiteRecord) -> Vec<Difference> {
        let mut differences = Vec::new();
        let mut compare = |what: &str, formatted: &dyn fmt::Display, configured: &dyn fmt::Display| {
            let (formatted, configured) = (formatted.to_string(), configured.to_string());
            if formatted != configured {
                differences.push(Difference { what: what.to_owned(), formatted, configured });
            }
        };
        compare("the group's name", &self.group, &configured.group);
        compare("the site's name", &self.site, &configured.site);
        compare("the site's id", &self.id.0, &configured.id.0);
        compare("the journal's blocks", &self.journal_blocks, &configured.journal_blocks);
        compare(
            "the differential volume's blocks",
            &self.differential_blocks,
            &configured.differential_blocks,
        );
        for index in 0..self.volumes.len().max(configured.volumes.len()) {
            let show = |volumes: &[VolumeSpec]| match volumes.get(index) {
                Some(volume) => format!("\"{}\" of {} blocks", volume.name, volume.blocks),
                None => "nothing".to_owned(),
            };
            compare(&format!("volume {}", index + 1), &show(&self.volumes), &show(&configured.volumes));
        }
        differences
    }
}

/// What messages call what tables know by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableNames {
    pub volumes: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    #[error("{path}: in use by another process; a site runs once")]
    Locked { path: PathBuf },
    #[error("{path}: {source}")]
    Database { path: PathBuf, source: Box<redb::Error> },
    #[error("{path}: metadata version {found}, this lockstep reads {METADATA_VERSION}")]
    Version { path: PathBuf, found: u64 },
    #[error("{path}: holds no site; give the `lockstep format` that was interrupted again, with --force")]
    Incomplete { path: PathBuf },
    /// Whole files that were written, and are not what was written; `what` begins with the file's name.
    #[error("{what}")]
    Damaged { what: String },
}

/// The open file; redb keeps it locked against other processes.
#[derive(Debug)]
pub struct Metadata {
    path: PathBuf,
    database: Database,
    names: TableNames,
}

impl Metadata {
    /// Makes the file, which must not exist, and makes the record durable.
    pub fn create(path: &Path, record: &SiteRecord) -> Result<Metadata, MetadataError> {
        let failed = |source: redb::Error| Metadata::failed(path, source);
        let file = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(|error| failed(redb::Error::Io(error)))?;
        let database = database_in(file).map_err(|error| failed(error.into()))?;
        write(&database, record).map_err(failed)?;
        Ok(Metadata { path: path.to_owned(), database, names: TableNames::default() })
    }

    pub fn open(path: &Path) -> Result<Metadata, MetadataError> {
        let failed = |source: redb::Error| Metadata::failed(path, source);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|error| failed(redb::Error::Io(error)))?;
        // The database would begin anew in a file without anything in it.
        if file.metadata().is_ok_and(|metadata| metadata.len() == 0) {
            return Err(failed(redb::Error::Io(std::io::ErrorKind::UnexpectedEof.into())));
        }
        let database = database_in(file).map_err(|error| failed(error.into()))?;
        Ok(Metadata { path: path.to_owned(), database, names: TableNames::default() })
    }

    /// Opens the file and reads all of it: what is not what was written there is found now rather than when it is needed.
    pub fn open_sound(path: &Path, names: &TableNames) -> Result<Metadata, MetadataError> {
        // Pages that make no sense to the database may end in a panic of its own.
        let opened = std::panic::catch_unwind(AssertUnwindSafe(|| Metadata::open_checked(path, names)));
        opened.unwrap_or_else(|_| {
            let what = format!("{}: its pages make no sense to the database", path.display());
            Err(MetadataError::Damaged { what })
        })
    }

    fn open_checked(path: &Path, names: &TableNames) -> Result<Metadata, MetadataError> {
        let mut metadata = Metadata { names: names.clone(), ..Metadata::open(path)? };
        // Entries first: they say by name what is wrong. Then every page, by the checksums that the database keeps.
        let record = metadata.record();
        if !matches!(record, Err(MetadataError::Version { .. } | MetadataError::Incomplete { .. })) {
            let store = metadata.into_store();
            if let Err(error) = store.check() {
                return Err(MetadataError::Damaged { what: store.describe(&error) });
            }
            metadata =
                Metadata { path: path.to_owned(), database: store.into_database(), names: names.clone() };
        }
        match metadata.database.check_integrity() {
            Ok(true) => {}
            Ok(false) => tracing::warn!("{}: its free space was counted anew", path.display()),
            Err(error) => return Err(Metadata::failed(path, error.into())),
        }
        record.map(|_| metadata)
    }

    /// Puts these tables into a file that was just made, in one transaction.
    pub fn fill(
        &self,
        applied: UpdateNumber,
        snapshots: &[SnapshotRecord],
        entries: &[Captured],
    ) -> Result<(), MetadataError> {
        let filled = fill(&self.database, applied, snapshots, entries);
        filled.map_err(|error| match error {
            StoreError::Database(error) => Metadata::failed(&self.path, *error),
            error => MetadataError::Damaged { what: format!("{}: {error}", self.path.display()) },
        })
    }

    pub fn record(&self) -> Result<SiteRecord, MetadataError> {
        let incomplete = || MetadataError::Incomplete { path: self.path.clone() };
        let (version, record) = read(&self.database).map_err(|error| match error {
            redb::Error::TableDoesNotExist(_) => incomplete(),
            error => Metadata::failed(&self.path, error),
        })?;
        match version {
            None => Err(incomplete()),
            Some(METADATA_VERSION) => record.ok_or_else(incomplete),
            Some(found) => Err(MetadataError::Version { path: self.path.clone(), found }),
        }
    }

    /// The tables of snapshots, for the thread that serves the group.
    pub fn into_store(self) -> Store {
        Store::new(self.database, self.path, self.names)
    }

    fn failed(path: &Path, source: redb::Error) -> MetadataError {
        let path = path.to_owned();
        match source {
            redb::Error::DatabaseAlreadyOpen => MetadataError::Locked { path },
            source if is_damage(&source) => {
                MetadataError::Damaged { what: format!("{}: {source}", path.display()) }
            }
            source => MetadataError::Database { path, source: Box::new(source) },
        }
    }
}

fn database_in(file: std::fs::File) -> Result<Database, redb::DatabaseError> {
    redb::Builder::new().create_with_backend(Backend::new(file)?)
}

/// Whether the database says that the file is not what it wrote.
fn is_damage(error: &redb::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    match error {
        redb::Error::Io(error) => matches!(error.kind(), InvalidData | UnexpectedEof),
        redb::Error::Corrupted(_)
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. } => true,
        _ => false,
    }
}

fn fill(
    database: &Database,
    applied: UpdateNumber,
    snapshots: &[SnapshotRecord],
    entries: &[Captured],
) -> Result<(), StoreError> {
    let transaction = begin_write(database)?;
    {
        transaction.open_table(NUMBERS)?.insert(store::APPLIED, applied.0)?;
        let mut records = transaction.open_table(store::SNAPSHOTS)?;
        for record in snapshots {
            store::insert_record(&mut records, record)?;
        }
        let mut captured = transaction.open_table(captured::CAPTURED)?;
        let mut rows = captured::Rows::default();
        for entry in entries {
            rows.put(&mut captured, entry)?;
        }
        rows.write(&mut captured)?;
    }
    transaction.commit()?;
    Ok(())
}

/// The tables that begin empty.
fn make_tables(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(NUMBERS)?;
    transaction.open_table(store::SNAPSHOTS)?;
    transaction.open_table(captured::CAPTURED)?;
    Ok(())
}

/// With both phases, a commit that is not what was written is damage, and never taken for one that did not happen.
fn begin_write(database: &Database) -> Result<redb::WriteTransaction, redb::TransactionError> {
    let mut transaction = database.begin_write()?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

fn write(database: &Database, record: &SiteRecord) -> Result<(), redb::Error> {
    let transaction = begin_write(database)?;
    make_tables(&transaction)?;
    {
        let mut numbers = transaction.open_table(NUMBERS)?;
        numbers.insert("version", METADATA_VERSION)?;
        numbers.insert("site_id", u64::from(record.id.0))?;
        numbers.insert("journal_blocks", record.journal_blocks)?;
        numbers.insert("differential_blocks", record.differential_blocks)?;
        let mut names = transaction.open_table(NAMES)?;
        names.insert("group", record.group.as_str())?;
        names.insert("site", record.site.as_str())?;
        put_volumes(&transaction, &record.volumes)?;
    }
    transaction.commit()?;
    Ok(())
}

fn put_volumes(transaction: &WriteTransaction, volumes: &[VolumeSpec]) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(VOLUMES)?;
    for (index, volume) in (0u16..).zip(volumes) {
        table.insert(index, (volume.name.as_str(), volume.blocks))?;
    }
    Ok(())
}

/// The version, and the record if it is whole.
fn read(database: &Database) -> Result<(Option<u64>, Option<SiteRecord>), redb::Error> {
    let transaction = database.begin_read()?;
    let numbers = transaction.open_table(NUMBERS)?;
    let number = |key| Ok::<_, redb::Error>(numbers.get(key)?.map(|value| value.value()));
    let version = number("version")?;
    if version != Some(METADATA_VERSION) {
        return Ok((version, None));
    }
    let names = transaction.open_table(NAMES)?;
    let name = |key| Ok::<_, redb::Error>(names.get(key)?.map(|value| value.value().to_owned()));
    let mut volumes = Vec::new();
    for entry in transaction.open_table(VOLUMES)?.iter()? {
        let (_, value) = entry?;
        let (name, blocks) = value.value();
        volumes.push(VolumeSpec { name: name.to_owned(), blocks });
    }
    let id = number("site_id")?.and_then(|id| u16::try_from(id).ok()).map(SiteId);
    let (group, site) = (name("group")?, name("site")?);
    let (journal_blocks, differential_blocks) = (number("journal_blocks")?, number("differential_blocks")?);
    let record = group.zip(site).zip(id).zip(journal_blocks).zip(differential_blocks).map(
        |((((group, site), id), journal_blocks), differential_blocks)| SiteRecord {
            group,
            site,
            id,
            journal_blocks,
            differential_blocks,
            volumes,
        },
    );
    Ok((version, record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::*;
    use crate::core::messages::MetadataOp;
    use crate::format::snapshot::SNAPSHOT_RECORD_BYTES;
    use crate::format::snapshot::SnapshotName;
    use crate::format::tables::header_of;

    pub(super) fn record() -> SiteRecord {
        let volume = |name: &str, blocks| VolumeSpec { name: name.to_owned(), blocks };
        SiteRecord {
            group: "orders".to_owned(),
            site: "left".to_owned(),
            id: SiteId(1),
            journal_blocks: 4096,
            differential_blocks: 256,
            volumes: vec![volume("data", 1000), volume("log", 20)],
        }
    }

    #[test]
    fn a_site_is_found_as_it_was_formatted_and_opened_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metadata.redb");
        let created = Metadata::create(&path, &record()).expect("created");
        assert!(matches!(Metadata::open(&path), Err(MetadataError::Locked { .. })));
        drop(created);
        assert!(Metadata::create(&path, &record()).is_err(), "an existing file was overwritten");
        let opened = Metadata::open(&path).expect("opened");
        assert_eq!(opened.record().expect("whole"), record());
    }

    #[test]
    fn what_is_not_a_site_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metadata.redb");
        assert!(matches!(Metadata::open(&path), Err(MetadataError::Database { .. })));
        drop(Database::create(&path).expect("created"));
        let empty = Metadata::open(&path).expect("opened").record();
        assert!(matches!(empty, Err(MetadataError::Incomplete { .. })));
        std::fs::write(&path, []).expect("written");
        assert!(matches!(Metadata::open(&path), Err(MetadataError::Damaged { .. })), "began anew in nothing");
        std::fs::write(&path, [7; 8192]).expect("written");
        assert!(matches!(Metadata::open(&path), Err(MetadataError::Damaged { .. })));
        std::fs::remove_file(&path).expect("removed");
        let newer = Metadata::create(&path, &record()).expect("created");
        let transaction = newer.database.begin_write().expect("begun");
        transaction.open_table(NUMBERS).expect("opened").insert("version", 9).expect("inserted");
        transaction.commit().expect("committed");
        assert!(matches!(newer.record(), Err(MetadataError::Version { found: 9, .. })));
    }

    #[test]
    fn a_site_of_an_older_version_is_refused_as_that() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metadata.redb");
        let older = Metadata::create(&path, &record()).expect("created");
        let transaction = older.database.begin_write().expect("begun");
        transaction.open_table(NUMBERS).expect("opened").insert("version", 2).expect("inserted");
        // As version 2 had it: an entry a row.
        transaction.delete_table(captured::CAPTURED).expect("deleted");
        let table: TableDefinition<captured::Key, &[u8; 16]> = TableDefinition::new("captured");
        transaction.open_table(table).expect("opened").insert((0, 5, 3), &[7; 16]).expect("inserted");
        transaction.commit().expect("committed");
        drop(older);
        assert!(matches!(
            Metadata::open_sound(&path, &TableNames::default()),
            Err(MetadataError::Version { found: 2, .. })
        ));
    }

    /// Everything that a file says.
    fn content(metadata: Metadata) -> (SiteRecord, Vec<Vec<u8>>) {
        let record = metadata.record().expect("whole");
        let (mut store, mut pages) = (metadata.into_store(), Vec::new());
        loop {
            let mut answer = Answer([0; BLOCK_BYTES]);
            let op = MetadataOp::Lend { page: pages.len() as u32, applied: UpdateNumber(0) };
            store.perform(&op, &mut answer).expect("carried out");
            pages.push(answer.0.to_vec());
            if header_of(&answer.0).expect("a page").last {
                return (record, pages);
            }
        }
    }

    struct Answer([u8; BLOCK_BYTES]);

    impl RequestPages for Answer {
        fn answer(&mut self) -> &mut [u8; BLOCK_BYTES] {
            &mut self.0
        }
        fn page(&self, _: usize) -> &[u8; BLOCK_BYTES] {
            unreachable!("nothing is committed")
        }
    }

    #[test]
    fn whatever_bit_flips_is_found_or_says_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("metadata.redb");
        let entry = |lba: u64| Captured {
            volume: VolumeId(0),
            lba: Lba(lba),
            snapshot: UpdateNumber(7),
            slot: Slot(lba),
            sum: BlockSum(lba as u32),
        };
        let snapshot = SnapshotRecord {
            number: UpdateNumber(7),
            volumes: VolumeSet(1),
            name: SnapshotName::new("nightly"),
            ..SnapshotRecord::EMPTY
        };
        let entries: Vec<Captured> = (0..300).map(entry).collect();
        let metadata = Metadata::create(&path, &record()).expect("created");
        metadata.fill(UpdateNumber(9), &[snapshot], &entries).expect("filled");
        drop(metadata);
        let names = TableNames { volumes: vec!["data".to_owned(), "log".to_owned()] };
        let whole = std::fs::read(&path).expect("read");
        let due = content(Metadata::open_sound(&path, &names).expect("sound"));
        let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
        let (mut found, mut state) = (0, 1u64);
        for _ in 0..200 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            let at = used[(state >> 33) as usize % used.len()];
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (state >> 61);
            std::fs::write(&path, &flipped).expect("written");
            match Metadata::open_sound(&path, &names) {
                Ok(metadata) => assert!(content(metadata) == due, "byte {at} of another truth"),
                Err(MetadataError::Damaged { what }) => {
                    assert!(what.contains("metadata.redb"), "{what}");
                    found += 1;
                }
                Err(error) => panic!("byte {at}: {error}"),
            }
        }
        // Most of the file is what the database no longer refers to.
        assert!(found > 10, "{found} of 200");
        // By name, where there is one.
        let damaged = |value: &[u8], named: &[&str]| {
            let mut flipped = whole.clone();
            for at in (0..whole.len() - value.len()).filter(|at| whole[*at..].starts_with(value)) {
                flipped[at] ^= 0x10;
            }
            assert!(flipped != whole, "not there");
            std::fs::write(&path, &flipped).expect("written");
            let said = Metadata::open_sound(&path, &names).expect_err("damaged").to_string();
            assert!(named.iter().all(|name| said.contains(name)), "{said}");
        };
        damaged(&entry(77).value(), &["table captured", "volume data block 77", "snapshot nightly (#7)"]);
        let mut bytes = [0; SNAPSHOT_RECORD_BYTES];
        SnapshotRecord { taken_at_ns: 0, ..snapshot }.encode(&mut bytes);
        damaged(&bytes, &["table snapshots", "snapshot nightly (#7)"]);
    }

    #[test]
    fn every_difference_is_named_with_both_values() {
        assert!(record().differences(&record()).is_empty());
        let mut configured = record();
        configured.id = SiteId(2);
        configured.volumes[0].blocks = 999;
        configured.volumes.pop();
        let shown: Vec<String> =
            record().differences(&configured).iter().map(Difference::to_string).collect();
        assert_eq!(
            shown,
            [
                "the site's id was formatted as 1, the configuration says 2",
                "volume 1 was formatted as \"data\" of 1000 blocks, the configuration says \"data\" of 999 blocks",
                "volume 2 was formatted as \"log\" of 20 blocks, the configuration says nothing",
            ]
        );
    }
}
