//! The running image: where it was started from and the digest of what it holds.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{Context, SHA256};
use hallmark_core::selector::SelectorKind;

use super::{Observation, procfs};

/// File systems whose content their owner may change between two reads, and need not show the reader
/// what it showed `execve`.
const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;

/// File systems on local disks that give a file a new time of change whenever its content changes, through a
/// mapping too, and let no user set that time. On any other (tmpfs, overlay, network) an image is read
/// anew each time: the same times there do not mean the same content. Magic numbers of statfs(2).
const TIMES_HOLD: [u64; 4] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683e, // btrfs
    0xf2f5_2010, // f2fs
];

/// Time stamps of files are as coarse as a timer tick: a file changed this recently could be changed
/// again without a trace, so its digest is not kept.
const SETTLED: Duration = Duration::from_secs(2);

/// Digests of images seen before, by device, inode, size and times of change.
#[derive(Debug)]
pub struct ImageDigests {
    max_bytes: u64,
    max_entries: usize,
    entries: Mutex<Entries>,
    now: fn() -> SystemTime,
}

#[derive(Debug, Default)]
struct Entries {
    by_file: HashMap<FileKey, Entry>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    used: u64,
    digest: Digest,
}

/// Filled once by whoever is first; the others wait for it rather than read the file again.
type Digest = Arc<OnceLock<Result<[u8; 32], String>>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileKey {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileKey {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let latest = self.changed.0.max(self.modified.0).max(0);
        now.checked_sub(Duration::from_secs(latest as u64)).is_some_and(|age| age > SETTLED)
    }
}

impl ImageDigests {
    /// A store for at most `max_entries` digests of images of at most `max_bytes` each.
    pub fn new(max_entries: usize, max_bytes: u64) -> Self {
        Self { max_bytes, max_entries, entries: Mutex::default(), now: SystemTime::now }
    }

    fn sha256(&self, file: &File, meta: &Metadata) -> Result<[u8; 32], String> {
        if !meta.is_file() {
            return Err("the image is not a regular file".into());
        }
        if meta.size() > self.max_bytes {
            return Err(format!("the image has {} bytes, more than {}", meta.size(), self.max_bytes));
        }
        let fs = rustix::fs::fstatfs(file).map_err(|e| e.to_string())?;
        if fs.f_type as u64 == FUSE_SUPER_MAGIC {
            return Err(
                "the image lies on a FUSE file system, whose owner decides at each read what it holds".into(),
            );
        }
        let key = FileKey::of(meta);
        // Neither kept nor shared with whoever asks meanwhile: he may run what the file holds by then.
        if !TIMES_HOLD.contains(&(fs.f_type as u64)) || !key.is_settled((self.now)()) {
            return read(file, key, self.max_bytes);
        }
        let digest = self.entry(key);
        let result = digest.get_or_init(|| read(file, key, self.max_bytes)).clone();
        if result.is_err() {
            self.forget(key, &digest);
        }
        result
    }

    fn entry(&self, key: FileKey) -> Digest {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.clock += 1;
        let used = entries.clock;
        if !entries.by_file.contains_key(&key) && entries.by_file.len() >= self.max_entries {
            let oldest = entries.by_file.iter().min_by_key(|(_, e)| e.used).map(|(k, _)| *k);
            oldest.and_then(|k| entries.by_file.remove(&k));
        }
        let entry = entries.by_file.entry(key).or_insert_with(|| Entry { used, digest: Digest::default() });
        entry.used = used;
        entry.digest.clone()
    }

    fn forget(&self, key: FileKey, digest: &Digest) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.by_file.get(&key).is_some_and(|e| Arc::ptr_eq(&e.digest, digest)) {
            entries.by_file.remove(&key);
        }
    }
}

fn read(mut file: &File, key: FileKey, max_bytes: u64) -> Result<[u8; 32], String> {
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 64 * 1024];
    let mut total: u64 = 0;
    loop {
        let n = file.read(&mut buffer).map_err(|e| e.to_string())?;
        if n == 0 {
            break;
        }
        total += n as u64;
        if total > max_bytes {
            return Err(format!("the image holds more than {max_bytes} bytes"));
        }
        context.update(&buffer[..n]);
    }
    let now = FileKey::of(&file.metadata().map_err(|e| e.to_string())?);
    if now != key || total != key.size {
        return Err("the image changed while it was read".into());
    }
    let digest = context.finish();
    digest.as_ref().try_into().map_err(|_| "SHA-256 has 32 bytes".into())
}

/// `exe:path` and `exe:sha256`, through `/proc/PID/exe`: the inode that is running, whatever has become of
/// its name.
pub(super) fn collect(directory: &OwnedFd, digests: &ImageDigests, seen: &mut Observation) {
    let opened = procfs::open(directory, "exe")
        .map_err(|e| e.to_string())
        .and_then(|file| file.metadata().map(|meta| (file, meta)).map_err(|e| e.to_string()));
    let (file, meta) = match opened {
        Ok(opened) => opened,
        Err(why) => {
            seen.miss(SelectorKind::ExePath, &why);
            seen.miss(SelectorKind::ExeSha256, why);
            return;
        }
    };
    match path(directory, &meta) {
        Ok(path) => seen.add(SelectorKind::ExePath, path),
        Err(why) => seen.miss(SelectorKind::ExePath, why),
    }
    match digests.sha256(&file, &meta) {
        Ok(digest) => seen.add(SelectorKind::ExeSha256, hex::encode(digest)),
        Err(why) => seen.miss(SelectorKind::ExeSha256, why),
    }
}

/// The path counts only where it leads the host daemon to the very file that runs: a process in a mount
/// namespace of its own may have put any file under any name.
fn path(directory: &OwnedFd, running: &Metadata) -> Result<String, String> {
    let target = rustix::fs::readlinkat(directory, "exe", Vec::new()).map_err(|e| e.to_string())?;
    let path = target.into_string().map_err(|_| "the path is not UTF-8")?;
    let found = std::fs::symlink_metadata(&path).map_err(|e| format!("{path}: {e}"))?;
    if (found.dev(), found.ino()) != (running.dev(), running.ino()) {
        return Err(format!("{path} is not the running file as the host daemon sees it"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(digests: &ImageDigests, path: &std::path::Path) -> Result<[u8; 32], String> {
        let file = File::open(path).unwrap();
        digests.sha256(&file, &file.metadata().unwrap())
    }

    #[test]
    fn a_digest_follows_the_content_and_not_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let digests = ImageDigests::new(4, 1024);
        std::fs::write(&path, b"one").unwrap();
        let one = digest(&digests, &path).unwrap();
        // Same length, same instant: only a digest that was not kept can tell them apart.
        std::fs::write(&path, b"two").unwrap();
        assert_ne!(one, digest(&digests, &path).unwrap());
        assert!(digests.entries.lock().unwrap().by_file.is_empty());
    }

    fn in_an_hour() -> SystemTime {
        SystemTime::now() + Duration::from_secs(3600)
    }

    /// On tmpfs a page that is mapped for writing stays so, and only the first write shows in the times.
    #[test]
    fn an_image_rewritten_through_a_mapping_on_tmpfs_has_a_new_digest() {
        use std::io::{BufRead, Write};
        use std::process::{Command, Stdio};
        let shm = std::path::Path::new("/dev/shm");
        let Ok(dir) = tempfile::tempdir_in(shm) else { return eprintln!("skipped: no /dev/shm") };
        let path = dir.path().join("image");
        std::fs::write(&path, vec![b'-'; 4096]).unwrap();
        let script = "import mmap,sys
f=open(sys.argv[1],'r+b');m=mmap.mmap(f.fileno(),4096)
for line in sys.stdin: m[:1]=line[:1].encode();print('done',flush=True)";
        let mut writer = Command::new("python3")
            .args(["-c", script, path.to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = std::io::BufReader::new(writer.stdout.take().unwrap());
        let mut write = |line: &[u8]| {
            writer.stdin.as_mut().unwrap().write_all(line).unwrap();
            said.read_line(&mut String::new()).unwrap();
            FileKey::of(&std::fs::metadata(&path).unwrap())
        };
        // All times are long past, as far as the digests know.
        let digests = ImageDigests { now: in_an_hour, ..ImageDigests::new(4, 1 << 20) };
        let before = write(b"a\n");
        let one = digest(&digests, &path).unwrap();
        let after = write(b"b\n");
        let two = digest(&digests, &path).unwrap();
        drop(writer.stdin.take());
        writer.wait().unwrap();
        assert_eq!(before, after, "the times do not tell");
        assert_ne!(one, two);
        assert!(digests.entries.lock().unwrap().by_file.is_empty());
    }

    #[test]
    fn a_file_with_a_time_of_the_last_seconds_or_the_future_is_not_kept() {
        let now = SystemTime::now();
        let meta = std::fs::metadata("/bin/sh").unwrap();
        let seconds = now.duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let settled = |changed: i64, modified: i64| {
            let key = FileKey { changed: (changed, 0), modified: (modified, 0), ..FileKey::of(&meta) };
            key.is_settled(now)
        };
        assert!(settled(seconds - 10, seconds - 10));
        assert!(!settled(seconds - 1, seconds - 10) && !settled(seconds - 10, seconds - 1));
        assert!(!settled(seconds + 10, seconds - 10) && !settled(seconds - 10, seconds + 10));
    }

    #[test]
    fn settled_images_are_read_once_and_the_store_is_bounded() {
        let digests = ImageDigests::new(2, 1 << 30);
        for name in ["/bin/sh", "/bin/cat", "/bin/ls", "/bin/sh"] {
            let path = std::fs::canonicalize(name).unwrap();
            assert_eq!(digest(&digests, &path), digest(&digests, &path));
            assert!(digests.entries.lock().unwrap().by_file.len() <= 2);
        }
    }

    #[test]
    fn too_large_or_not_a_file_is_no_digest() {
        let digests = ImageDigests::new(2, 3);
        assert!(digest(&digests, std::path::Path::new("/bin/sh")).unwrap_err().contains("more than 3"));
        assert!(digest(&digests, std::path::Path::new("/")).unwrap_err().contains("not a regular file"));
    }
}
