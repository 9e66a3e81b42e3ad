//! Every bound of the data path, with its reason. A bound that a user may set has its default in `node::config`.

/// Update numbers and generations that are taken from outside: a site that numbers a billion updates a second gets there in a century, and
/// behind it there is room for whatever is added to them.
pub const NUMBER_MAX: u64 = 1 << 62;

/// Volumes in one group. Handshakes list them all in one 4 KiB frame.
pub const VOLUMES_MAX: usize = 32;

/// Blocks with payload in one update (128 KiB): small enough that one update never stalls a link or a batch,
/// large enough that numbering costs nothing on sequential writes. Larger requests become several updates.
pub const UPDATE_BLOCKS_MAX: usize = 32;

/// Blocks in one `Zero` update (4 MiB); it carries no payload, but each block takes an index entry.
pub const ZERO_BLOCKS_MAX: usize = 1024;

/// Descriptors in a journal batch: a 4 KiB header less its 256 bytes of fields, by 64 bytes each.
pub const BATCH_DESCRIPTORS_MAX: usize = 60;

/// Payload blocks in a journal batch (1 MiB): one vectored write stays below the kernel's 1024 segments.
pub const BATCH_PAYLOAD_BLOCKS_MAX: usize = 256;

/// Blocks of a batch, header included.
pub const BATCH_BLOCKS_MAX: usize = 1 + BATCH_PAYLOAD_BLOCKS_MAX;

/// Journal batches being written at once: one forms and fills while the disk works on the others.
pub const BATCHES_IN_FLIGHT_MAX: usize = 8;

/// Slots of the journal disk's page table: batches in flight, recovery and catch-up reads, superblock and flush.
pub const JOURNAL_IO_SLOTS: usize = 2 * BATCHES_IN_FLIGHT_MAX + 8;

/// Blocks in one volume I/O; the same as an update, so that a read or a destage run is one table slot.
pub const VOLUME_IO_BLOCKS_MAX: usize = UPDATE_BLOCKS_MAX;

/// Slots of the volume disk's page table: destage writes and host read misses in flight together.
pub const VOLUME_IO_SLOTS: usize = 512;

/// Updates numbered but not yet settled. At 100k IOPS it covers 160 ms: several flush intervals and round trips.
pub const WINDOW_UPDATES_MAX: usize = 16_384;

/// Requests one front may have inside the group (its tickets).
pub const FRONT_TICKETS_MAX: usize = 1024;

/// Fronts (NBD acceptors, in-process load) that one group serves.
pub const FRONTS_MAX: usize = 4;

/// Updates decoded by the link and not yet taken by the group.
pub const LINK_INBOUND_SLOTS: usize = 256;

/// Sites that a third may pull from: the first and the second.
pub const SOURCES_MAX: usize = 2;

/// Updates that a third asks for ahead of what it has taken. Of blocks of 4 KiB they are as much as the link's window (16 MiB),
/// so that it is the path which bounds them, not this.
pub const PULL_AHEAD: u64 = 4096;

/// Updates read back from the journal for a peer that is catching up, not yet consumed by the link.
pub const CATCH_UP_SLOTS: usize = 256;

/// Updates whose old blocks the link reads, or is about to: a turn of its takes few, and what waits behind them in its ring can
/// as well wait before it.
pub const OLD_BLOCK_SLOTS: usize = 256;

/// Pages a front or a link holds to receive into (8 MiB): a turn's worth at the fastest link measured.
pub const STAGING_PAGES: usize = 2048;

/// Messages taken from one ring in one turn, so that no edge starves the others, and so that of a burst the first are on
/// their way to the peer and the disk while the group takes the rest.
pub const TURN_MESSAGES_MAX: usize = 32;

/// Messages that the link puts into one write, 64 KiB of small updates: the peer works on the
/// first while the others are being encrypted.
pub const LINK_GATHER_MAX: usize = 16;

/// Generations kept in a history. Older ones are below every checkpoint that still matters.
pub const HISTORY_MAX: usize = 64;

/// Bytes in a site's or volume's name.
pub const NAME_BYTES_MAX: usize = 64;

/// Snapshots of a group that are kept at once. Every one is looked at by name and number in memory, and when a slot is
/// reclaimed; hourly ones for ten days are fewer.
pub const SNAPSHOTS_MAX: usize = 256;

/// Blocks (16 MiB) that one look for changes covers: 64 searches of the management information, each of which may read a row for every
/// snapshot, and whose thread has commits to carry out besides.
pub const CHANGES_BLOCKS_MAX: usize = 4096;

/// Old blocks numbered for a snapshot and not yet in the differential volume: as many at least as updates in the window, so that
/// single blocks are never held up by this bound before that one. A cache of more pages may have one for each of them, since
/// whoever overwrites it all once after a snapshot is to wait for the cache to fill, not for this.
pub const CAPTURES_MIN: usize = 16_384;

/// Pages of management information in one commit (a megabyte): some thirty thousand captured blocks an fsync. A
/// commit of few blocks rewrites almost as much of the tables as one of many, whose keys then lie close together.
pub const METADATA_PAGES_MAX: usize = 256;

/// Slots of the metadata executor's page table: a commit, a reclaim, and looks-up for readers of snapshots.
pub const METADATA_IO_SLOTS: usize = 32;

/// Volume blocks that are being repaired from the peer at once, each with a page: rot is rare, and of a region that is bad as a whole the
/// others come as these get done.
pub const REPAIRS_MAX: usize = 16;

/// Places that a scrub names of those it could not have repaired; the log names all.
pub const SCRUB_NAMED_MAX: usize = 16;

/// Blocks (1 MiB) that both sites compare at once: their checksums are looked up in one turn, some ten microseconds, and reading them
/// is eight I/Os at each.
pub const COMPARE_BLOCKS_MAX: u32 = 256;

/// Blocks of which a site that is copied to tells digests at once: seven reads, and the digests fit a page with their place.
pub const DIGEST_BLOCKS_MAX: usize = 7 * VOLUME_IO_BLOCKS_MAX;

/// Such extents that it is asked for at once, a read of each under way: enough for a disk far away, little memory at either site.
pub const DIGEST_EXTENTS_MAX: usize = 8;

/// Administrators' requests inside the group.
pub const ADMIN_REQUESTS_MAX: usize = 16;
