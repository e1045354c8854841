//! Where a partition's lines go: change files, standard output, or a store that takes them with their cursor.
//!
//! A file grows as `cdc-pNN-SEQUENCE.part`. It is *cut* at the end of a transaction: flushed, sealed by the cursor with its
//! length and checksum, and only then renamed to `cdc-pNN-SEQUENCE-eEPOCH-ID-FIRST-LAST.jsonl`. Whatever a crash leaves is one
//! of three: a `.part` that no cursor names, which goes and is written anew; one that the cursor names, which is published;
//! or a published file, which somebody may have taken away already. A `.part` that is gone while this process would publish it
//! was removed by another hand: the cursor goes back to before it was sealed. Sequence numbers have no gaps, and order a partition's
//! files even where its history went back.

use crate::cursor::{Cursor, Epoch, Sealed, sync_directory};
use crate::line::Place;
use crate::owner::{create, make_directory};
use crate::target::Target;
use crc32fast::Hasher;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Lines are written once there are this many bytes of them.
const BUFFER: usize = 256 << 10;

/// Why nothing more can be written.
#[derive(Debug)]
pub enum OutputError {
    /// It may go better later: the disk is full, say.
    Io(String),
    /// A person must look.
    Broken(String),
}

/// The file that grows.
struct Part {
    /// Nothing where lines go elsewhere.
    file: Option<File>,
    hasher: Hasher,
    /// Those that wait for being written among them.
    bytes: u64,
    first: Place,
    last: Place,
    since: Instant,
    changed: Instant,
}

/// Where a partition's lines go.
pub struct Output {
    target: Target,
    state: PathBuf,
    /// What is published.
    pub cursor: Cursor,
    /// As it was saved last.
    saved: Cursor,
    /// Nothing was written yet, ever.
    pub is_new: bool,
    part: Option<Part>,
    buffer: Vec<u8>,
    /// Lines are missing in the growing file: it must not be published.
    is_broken: bool,
}

fn failed(what: &str, path: &Path, error: &io::Error) -> OutputError {
    OutputError::Io(format!("{} cannot be {what}: {error}", path.display()))
}

/// The name of a partition's growing file.
fn part_name(partition: u8, sequence: u64) -> String {
    format!("cdc-p{partition:02}-{sequence:012}.part")
}

/// The name of a published file, all of whose changes are of one epoch.
fn file_name(sequence: u64, first: Place, last: Place, epochs: &[Epoch]) -> String {
    let Place { partition, epoch, version } = last;
    let id = epochs.iter().find(|known| known.number == epoch).map_or(0, |known| known.id);
    format!("cdc-p{partition:02}-{sequence:012}-e{epoch}-{id:016x}-{}-{version}.jsonl", first.version)
}

/// The epoch that a published file's changes are of, by its name; its `first_version` is the first in the file. `None` in a name
/// of before the id was in it, and where the consumer did not know it.
pub fn epoch_in(name: &str) -> Option<Epoch> {
    let mut parts = name.strip_suffix(".jsonl")?.split('-').skip(3);
    let (number, id, first, last) = (parts.next()?.strip_prefix('e')?, parts.next()?, parts.next()?, parts.next()?);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if parts.next().is_some() || id.len() != 16 || !digits(number) || !digits(first) || !digits(last) {
        return None;
    }
    let id = u64::from_str_radix(id, 16).ok().filter(|id| *id != 0)?;
    Some(Epoch { number: number.parse().ok()?, id, first_version: first.parse().ok()? })
}

/// The partition and the number in its sequence that a published file's name has.
pub fn sequence_of(name: &str) -> Option<(u8, u64)> {
    let rest = name.strip_prefix("cdc-p")?.strip_suffix(".jsonl")?;
    let (partition, rest) = rest.split_once('-')?;
    let (sequence, _) = rest.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if partition.len() != 2 || sequence.len() != 12 || !digits(partition) || !digits(sequence) {
        return None;
    }
    Some((partition.parse().ok()?, sequence.parse().ok()?))
}

impl Output {
    /// Goes on with what was taken before.
    pub fn open(target: &Target, state_file: &Path, partition: u8) -> Result<Output, OutputError> {
        let state = Cursor::path(state_file, partition);
        let found = match target {
            Target::Store(store) => {
                let text = store.cursor(partition);
                let cursor = text.and_then(|text| text.map(|text| Cursor::parse(&text, partition)).transpose());
                cursor.map_err(|why| format!("the cursor of partition {partition}: {why}"))
            }
            Target::Files(_) | Target::Stdout => Cursor::load(&state, partition),
        };
        let found = found.map_err(OutputError::Broken)?;
        let (is_new, cursor) = (found.is_none(), found.unwrap_or_else(|| Cursor::new(partition)));
        let (target, buffer) = (target.clone(), Vec::new());
        let saved = cursor.clone();
        let mut output = Output { target, state, cursor, saved, is_new, part: None, buffer, is_broken: false };
        output.settle()?;
        Ok(output)
    }

    /// The directory of the files, if there are any.
    fn directory(&self) -> Option<PathBuf> {
        match &self.target {
            Target::Files(directory) => Some(directory.clone()),
            Target::Stdout | Target::Store(_) => None,
        }
    }

    /// Publishes what was sealed, and removes what was not.
    fn settle(&mut self) -> Result<(), OutputError> {
        let Some(directory) = self.directory() else { return Ok(()) };
        make_directory(&directory).map_err(|e| failed("made", &directory, &e))?;
        if let Some(sealed) = self.cursor.sealed.clone() {
            let part = directory.join(part_name(self.cursor.partition, self.cursor.files));
            if part.exists() {
                check_sealed(&part, &sealed)?;
                publish(&part, &directory.join(&sealed.name))?;
            }
        }
        let prefix = format!("cdc-p{:02}-", self.cursor.partition);
        for entry in fs::read_dir(&directory).map_err(|e| failed("listed", &directory, &e))? {
            let name = entry.map_err(|e| failed("listed", &directory, &e))?.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with(&prefix)) else { continue };
            let path = directory.join(name);
            if name.ends_with(".part") {
                fs::remove_file(&path).map_err(|e| failed("removed", &path, &e))?;
            } else if sequence_of(name).is_some_and(|(_, sequence)| sequence > self.cursor.files) {
                return Err(OutputError::Broken(format!(
                    "{} is there, and {} knows {} files: restore the state that belongs to the files, or move them away",
                    path.display(),
                    self.state.display(),
                    self.cursor.files
                )));
            }
        }
        Ok(())
    }

    /// A file whose hook has not run yet.
    pub fn unannounced(&self) -> Option<PathBuf> {
        let sealed = self.cursor.sealed.as_ref().filter(|sealed| !sealed.announced)?;
        self.directory().map(|directory| directory.join(&sealed.name))
    }

    /// The hook of the newest file has run.
    pub fn announced(&mut self) -> Result<(), OutputError> {
        if let Some(sealed) = &mut self.cursor.sealed {
            sealed.announced = true;
        }
        self.save()
    }

    /// Adds the lines that `write` appends, which are of this place.
    pub fn add(&mut self, place: Place, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), OutputError> {
        let before = self.buffer.len();
        write(&mut self.buffer);
        let grown = (self.buffer.len() - before) as u64;
        match &mut self.part {
            Some(part) => {
                part.last = place;
                part.bytes += grown;
            }
            None => {
                let file = match &self.target {
                    Target::Files(directory) => {
                        let path = directory.join(part_name(self.cursor.partition, self.cursor.files + 1));
                        let made = create(&path);
                        self.is_broken |= made.is_err();
                        Some(made.map_err(|e| failed("made", &path, &e))?)
                    }
                    Target::Stdout | Target::Store(_) => None,
                };
                let (first, last, now) = (place, place, Instant::now());
                let hasher = Hasher::new();
                self.part = Some(Part { file, hasher, bytes: grown, first, last, since: now, changed: now });
            }
        }
        if self.buffer.len() >= BUFFER { self.write_out() } else { Ok(()) }
    }

    /// Lines were added now: told once for many of them, since the clock costs as much as a short line.
    pub fn touch(&mut self) {
        if let Some(part) = &mut self.part {
            part.changed = Instant::now();
        }
    }

    /// Writes the lines that wait; a store gets them with their cursor.
    pub fn write_out(&mut self) -> Result<(), OutputError> {
        let Some(part) = self.part.as_mut().filter(|_| !self.buffer.is_empty()) else { return Ok(()) };
        let written = match &self.target {
            Target::Store(_) => return Ok(()),
            Target::Stdout => {
                let mut out = io::stdout().lock();
                let written = out.write_all(&self.buffer).and_then(|()| out.flush());
                written.map_err(|error| match error.kind() {
                    io::ErrorKind::BrokenPipe => OutputError::Broken("nobody reads the output any more".to_string()),
                    _ => OutputError::Io(format!("standard output cannot be written: {error}")),
                })
            }
            Target::Files(directory) => {
                part.hasher.update(&self.buffer);
                let written = part.file.as_mut().map_or(Ok(()), |file| file.write_all(&self.buffer));
                written.map_err(|error| failed("written to", directory, &error))
            }
        };
        self.buffer.clear();
        self.is_broken |= written.is_err();
        written
    }

    /// Bytes of the growing file.
    pub fn bytes(&self) -> u64 {
        self.part.as_ref().map_or(0, |part| part.bytes)
    }

    /// The last place in the growing file.
    pub fn place(&self) -> Option<Place> {
        self.part.as_ref().map(|part| part.last)
    }

    /// When the growing file was begun, and when it was last added to.
    pub fn ages(&self) -> Option<(Instant, Instant)> {
        self.part.as_ref().map(|part| (part.since, part.changed))
    }

    /// Cuts the growing file, if there is one, and publishes it; `cursor` is how far it then is. Answers the file.
    pub fn cut(
        &mut self,
        last: u64,
        epochs: &[Epoch],
        copying: bool,
        hook: bool,
    ) -> Result<Option<PathBuf>, OutputError> {
        self.write_out()?;
        if self.is_broken {
            return Err(OutputError::Io("lines could not be written".to_string()));
        }
        // Until all of it has gone well: whoever tries again must not take what is missing for nothing.
        self.is_broken = true;
        let part = self.part.take();
        let before = self.saved.clone();
        self.cursor.epochs = epochs.iter().filter(|epoch| epoch.first_version <= last).copied().collect();
        (self.cursor.last, self.cursor.copying) = (last, copying);
        let Some((part, directory)) = part.zip(self.directory()) else {
            self.save()?;
            self.is_broken = false;
            return Ok(None);
        };
        let draft = directory.join(part_name(self.cursor.partition, self.cursor.files + 1));
        if let Some(file) = &part.file {
            // Its name, too, must be durable before the cursor speaks of it.
            let flushed = file.sync_all().and_then(|()| sync_directory(&draft));
            flushed.map_err(|e| failed("flushed", &draft, &e))?;
        }
        self.cursor.files += 1;
        let name = file_name(self.cursor.files, part.first, part.last, epochs);
        let path = directory.join(&name);
        self.cursor.sealed = Some(Sealed { name, bytes: part.bytes, crc: part.hasher.finalize(), announced: !hook });
        self.save()?;
        let published = publish(&draft, &path);
        let is_gone = |path: &Path| path.try_exists().is_ok_and(|there| !there);
        if published.is_err() && is_gone(&draft) && is_gone(&path) {
            return Err(self.go_back_before(before, &draft, (part.first, part.last)));
        }
        published?;
        self.is_broken = false;
        Ok(Some(path))
    }

    /// A sealed file is gone that was never published: its lines are to be written again, so the cursor is what it was before.
    fn go_back_before(&mut self, before: Cursor, draft: &Path, (first, last): (Place, Place)) -> OutputError {
        self.cursor = before;
        let gone = format!("{} was removed before it was published, by somebody else", draft.display());
        match self.save() {
            Ok(()) => OutputError::Io(format!("{gone}; {first} to {last} are written again")),
            Err(OutputError::Io(why) | OutputError::Broken(why)) => OutputError::Broken(format!(
                "{gone}, and the state cannot be put back to before it ({why}): {first} to {last} are in no file"
            )),
        }
    }

    fn save(&mut self) -> Result<(), OutputError> {
        self.is_new = false;
        match &self.target {
            Target::Store(store) => {
                let lines = std::mem::take(&mut self.buffer);
                store.take(self.cursor.partition, &lines, &self.cursor).map_err(OutputError::Broken)?;
            }
            Target::Files(_) | Target::Stdout => {
                self.cursor.save(&self.state).map_err(|e| failed("written", &self.state, &e))?;
            }
        }
        self.saved = self.cursor.clone();
        Ok(())
    }
}

/// A sealed file is what the cursor says, or a disk has lost what it had flushed.
fn check_sealed(part: &Path, sealed: &Sealed) -> Result<(), OutputError> {
    let mut file = File::open(part).map_err(|e| failed("read", part, &e))?;
    let (mut hasher, mut bytes, mut buffer) = (Hasher::new(), 0u64, vec![0; BUFFER]);
    loop {
        let n = file.read(&mut buffer).map_err(|e| failed("read", part, &e))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
    }
    if (bytes, hasher.finalize()) == (sealed.bytes, sealed.crc) {
        return Ok(());
    }
    Err(OutputError::Broken(format!(
        "{} was flushed with {} bytes and is another file now: the disk has lost or changed what it had; \
         move the partition's files and its state away to begin anew",
        part.display(),
        sealed.bytes
    )))
}

fn publish(draft: &Path, path: &Path) -> Result<(), OutputError> {
    fs::rename(draft, path).and_then(|()| sync_directory(path)).map_err(|e| failed("published", path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn place(version: u64) -> Place {
        Place { partition: 1, epoch: 2, version }
    }

    fn epochs() -> [Epoch; 1] {
        [Epoch { number: 2, id: 9, first_version: 1 }]
    }

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("turnstone-output-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
        fn open(&self) -> Result<Output, OutputError> {
            Output::open(&Target::Files(self.0.join("logs")), &self.0.join("state"), 1)
        }
        fn names(&self) -> Vec<String> {
            let list = fs::read_dir(self.0.join("logs")).unwrap();
            let mut names: Vec<String> = list.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn files_are_cut_named_and_gone_on_with() {
        let at = Scratch::new("cut");
        let mut output = at.open().unwrap();
        assert!(output.is_new);
        output.add(place(5), |out| out.extend_from_slice(b"five\n")).unwrap();
        output.add(place(6), |out| out.extend_from_slice(b"six\n")).unwrap();
        assert_eq!((output.bytes(), output.place()), (9, Some(place(6))));
        let path = output.cut(7, &epochs(), false, false).unwrap().unwrap();
        let name = "cdc-p01-000000000001-e2-0000000000000009-5-6.jsonl";
        assert!(path.ends_with(Path::new("logs").join(name)), "{}", path.display());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&path).unwrap(), b"five\nsix\n");
        assert_eq!(sequence_of(name), Some((1, 1)));
        assert_eq!(epoch_in(name), Some(Epoch { number: 2, id: 9, first_version: 5 }));
        assert_eq!(epoch_in("cdc-p01-000000000001-e2-5-6.jsonl"), None, "of before there were ids");
        assert_eq!(epoch_in("cdc-p01-000000000001-e2-0000000000000000-5-6.jsonl"), None);
        assert_eq!(output.cut(9, &epochs(), false, false).unwrap(), None, "nothing to cut, but the position is kept");
        output.add(place(10), |out| out.extend_from_slice(b"lost\n")).unwrap();
        output.write_out().unwrap();
        drop(output);
        let output = at.open().unwrap();
        assert!(!output.is_new);
        assert_eq!((output.cursor.last, output.cursor.files), (9, 1));
        assert_eq!(at.names(), [name], "what was not sealed is gone");
    }

    #[test]
    fn what_was_sealed_is_published_by_the_next_start() {
        let at = Scratch::new("sealed");
        let mut output = at.open().unwrap();
        output.add(place(5), |out| out.extend_from_slice(b"five\n")).unwrap();
        let path = output.cut(5, &epochs(), false, true).unwrap().unwrap();
        let part = path.with_file_name(part_name(1, 1));
        fs::rename(&path, &part).unwrap();
        let output = at.open().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"five\n");
        assert_eq!(output.unannounced(), Some(path.clone()), "its hook has not run");
        fs::write(&part, b"fivf\n").unwrap();
        fs::remove_file(&path).unwrap();
        assert!(matches!(at.open(), Err(OutputError::Broken(why)) if why.contains("the disk has lost")));
        fs::remove_file(&part).unwrap();
        assert_eq!(at.open().unwrap().cursor.files, 1, "somebody took it away");
    }

    #[test]
    fn what_could_not_be_published_is_not_passed_over() {
        let at = Scratch::new("failed");
        let mut output = at.open().unwrap();
        output.add(place(5), |out| out.extend_from_slice(b"five\n")).unwrap();
        // The state cannot be replaced: its draft's name is taken.
        let taken = at.0.join("state.p01.new");
        fs::create_dir(&taken).unwrap();
        assert!(matches!(output.cut(5, &epochs(), false, false), Err(OutputError::Io(_))));
        fs::remove_dir(&taken).unwrap();
        assert!(matches!(output.cut(5, &epochs(), false, false), Err(OutputError::Io(_))), "its lines are in no file");
        drop(output);
        let output = at.open().unwrap();
        assert_eq!((output.cursor.last, output.is_new, at.names().len()), (0, true, 0));
    }

    #[test]
    fn lines_of_a_file_that_somebody_removed_are_written_again() {
        let at = Scratch::new("removed");
        let mut output = at.open().unwrap();
        output.add(place(5), |out| out.extend_from_slice(b"five\n")).unwrap();
        output.cut(5, &epochs(), false, false).unwrap();
        // Something is taken back at the beginning of the file that goes.
        output.cursor.go_back(3);
        output.add(place(6), |out| out.extend_from_slice(b"six\n")).unwrap();
        output.write_out().unwrap();
        fs::remove_file(at.0.join("logs").join(part_name(1, 2))).unwrap();
        let again = output.cut(6, &epochs(), false, false);
        assert!(matches!(again, Err(OutputError::Io(why)) if why.contains("1:2:6 to 1:2:6 are written again")));
        assert!(output.cut(6, &epochs(), false, false).is_err(), "its lines are in no file");
        drop(output);
        let mut output = at.open().unwrap();
        assert_eq!((output.cursor.last, output.cursor.files), (5, 1), "what was taken back is there to be taken back");
        output.add(place(6), |out| out.extend_from_slice(b"six\n")).unwrap();
        output.cut(6, &epochs(), false, false).unwrap();
        assert_eq!(at.names().len(), 2);
    }

    #[test]
    fn files_without_their_state_are_not_written_over() {
        let at = Scratch::new("stateless");
        let mut output = at.open().unwrap();
        output.add(place(5), |out| out.extend_from_slice(b"five\n")).unwrap();
        output.cut(5, &epochs(), false, false).unwrap();
        fs::remove_file(at.0.join("state.p01")).unwrap();
        assert!(matches!(at.open(), Err(OutputError::Broken(why)) if why.contains("move them away")));
    }
}
