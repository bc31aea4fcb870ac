//! A simulated disk, to pull the plug on: what was written is kept apart from what was synced.
//!
//! A power cut keeps what was synced and, of the rest, what a seed says: every sector of every write on its own is kept,
//! lost or torn in the middle, so that writes survive in any subset and order. Afterwards nothing works any more, and
//! [`Platter::after_the_cut`] is the disk that the next start finds. Faults other than a cut are scheduled likewise.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// What a disk writes whole, as a rule; here it may tear.
const SECTOR: usize = 512;

/// Random numbers that a seed determines (SplitMix64).
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub(super) fn bytes(&mut self, count: u64) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }
}

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// The power is gone: nothing works from here on.
    PowerCut,
    /// One sync fails, and what it should have saved is lost; the next succeeds as if nothing had been. So do disks.
    LostSync,
    /// No write that makes the file longer succeeds.
    Full,
}

/// The disk; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Platter(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    /// What survives whatever happens.
    synced: Vec<u8>,
    /// What was written since, in order.
    unsynced: Vec<Change>,
    /// What is read.
    visible: Vec<u8>,
    operations: u64,
    fault: Option<(u64, Fault)>,
}

#[derive(Debug)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    Length(usize),
}

impl Platter {
    /// Lets a fault happen after so many more operations.
    pub(super) fn fail_after(&self, operations: u64, fault: Fault) {
        let mut content = self.content();
        content.fault = Some((content.operations + operations, fault));
    }

    /// Pulls the plug.
    pub(super) fn cut(&self) {
        self.fail_after(0, Fault::PowerCut);
    }

    /// What the next start finds.
    pub(super) fn after_the_cut(&self, chance: &mut Chance) -> Self {
        let content = self.content();
        let mut image = content.synced.clone();
        // Of a hundred sectors, so many are lost and so many torn: from nothing lost to everything.
        let (lost, torn) = (chance.below(101), chance.below(30));
        for change in &content.unsynced {
            match change {
                Change::Write { offset, data } => {
                    for (number, sector) in sectors(*offset, data) {
                        let kept = match chance.below(100) {
                            fate if fate < lost => continue,
                            fate if fate < lost + torn => chance.below(sector.len() as u64) as usize,
                            _ => sector.len(),
                        };
                        put(&mut image, number, &sector[..kept]);
                    }
                }
                Change::Length(length) if chance.below(100) >= lost => image.resize(*length, 0),
                Change::Length(_) => {}
            }
        }
        let content = Content { synced: image.clone(), visible: image, ..Content::default() };
        Self(Arc::new(Mutex::new(content)))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap()
    }

    /// Counts an operation, and gives the fault that is due.
    fn operation(&self) -> io::Result<(MutexGuard<'_, Content>, Option<Fault>)> {
        let mut content = self.content();
        content.operations += 1;
        let fault = content.fault.filter(|(from, _)| content.operations > *from).map(|(_, fault)| fault);
        if fault == Some(Fault::PowerCut) {
            return Err(io::Error::other("the power is cut"));
        }
        Ok((content, fault))
    }
}

/// A write in pieces that end where sectors do, each with its place.
fn sectors(offset: usize, data: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let begins = at;
        at = data.len().min(begins + SECTOR - (offset + begins) % SECTOR);
        (begins < data.len()).then(|| (offset + begins, &data[begins..at]))
    })
}

fn put(image: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if image.len() < offset + data.len() {
        image.resize(offset + data.len(), 0);
    }
    image[offset..offset + data.len()].copy_from_slice(data);
}

impl redb::StorageBackend for Platter {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content().visible.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.content();
        let range = offset as usize..offset as usize + out.len();
        let read = content.visible.get(range).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(read);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let (mut content, fault) = self.operation()?;
        let length = length as usize;
        if fault == Some(Fault::Full) && length > content.visible.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        content.visible.resize(length, 0);
        content.unsynced.push(Change::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let (mut content, fault) = self.operation()?;
        if fault == Some(Fault::LostSync) {
            content.fault = None;
            content.unsynced.clear();
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let Content { synced, unsynced, .. } = &mut *content;
        for change in unsynced.drain(..) {
            match change {
                Change::Write { offset, data } => put(synced, offset, &data),
                Change::Length(length) => synced.resize(length, 0),
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (mut content, fault) = self.operation()?;
        let offset = offset as usize;
        if fault == Some(Fault::Full) && offset + data.len() > content.visible.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        put(&mut content.visible, offset, data);
        content.unsynced.push(Change::Write { offset, data: data.to_vec() });
        Ok(())
    }
}
