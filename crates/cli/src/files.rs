//! Certificates and keys in files: written whole or not at all, with the modes they should have.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hallmark_core::tier::Tier;
use zeroize::Zeroizing;

use crate::failure::Failure;

/// Roots by tier, DER.
pub(crate) type Roots = BTreeMap<Tier, Vec<Vec<u8>>>;

/// Mode of what anybody may read.
pub(crate) const PUBLIC: u32 = 0o644;
/// Mode of a private key.
pub(crate) const PRIVATE: u32 = 0o600;

/// One file to write.
pub(crate) struct Content {
    pub(crate) name: String,
    pub(crate) mode: u32,
    pub(crate) bytes: Zeroizing<Vec<u8>>,
}

impl Content {
    pub(crate) fn new(name: &str, mode: u32, bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), mode, bytes: Zeroizing::new(bytes) }
    }
}

/// One certificate as PEM.
pub(crate) fn certificate_pem(der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der), config)
}

/// A PKCS#8 private key as PEM (RFC 7468 section 10). Written here, in one buffer that is wiped: a general
/// encoder leaves copies behind.
pub(crate) fn key_content(name: &str, pkcs8: &[u8]) -> Content {
    const LINE: usize = 64;
    // Three bytes give four characters; a line's worth more for the newlines and the two boundaries.
    let mut text = Zeroizing::new(Vec::with_capacity(pkcs8.len() * 2 + 4 * LINE));
    let mut line = Zeroizing::new([0; LINE]);
    text.extend_from_slice(b"-----BEGIN PRIVATE KEY-----\n");
    for part in pkcs8.chunks(LINE / 4 * 3) {
        // The buffer holds what a line's worth of bytes encodes to.
        let len = STANDARD.encode_slice(part, line.as_mut_slice()).unwrap_or(0);
        text.extend_from_slice(&line[..len]);
        text.push(b'\n');
    }
    text.extend_from_slice(b"-----END PRIVATE KEY-----\n");
    Content { name: name.to_owned(), mode: PRIVATE, bytes: text }
}

/// Certificates as one PEM file.
pub(crate) fn chain_content<'a>(name: &str, chain: impl IntoIterator<Item = &'a [u8]>) -> Content {
    let pem: String = chain.into_iter().map(certificate_pem).collect();
    Content::new(name, PUBLIC, pem.into_bytes())
}

/// The files for each way to trust: `bundle.pem` (every tier), `tier-T.pem` (T alone) and
/// `at-least-T.pem` (T and above, what a relying party that demands T trusts).
pub(crate) fn bundle_contents(roots: &Roots) -> Vec<Content> {
    let of =
        |least: Tier, most: Tier| roots.range(least..=most).flat_map(|(_, ders)| ders).map(Vec::as_slice);
    let mut contents = vec![chain_content("bundle.pem", of(Tier::Foundation, Tier::Advanced))];
    for tier in Tier::ALL {
        contents.push(chain_content(&format!("tier-{tier}.pem"), of(tier, tier)));
        contents.push(chain_content(&format!("at-least-{tier}.pem"), of(tier, Tier::Advanced)));
    }
    // A tier without roots has no file: an empty one would be read as an error, or worse.
    contents.retain(|content| !content.bytes.is_empty());
    contents
}

/// Writes the bundle files into a directory, each atomically; gives their names.
pub(crate) fn write_bundles(dir: &Path, roots: &Roots) -> Result<Vec<String>, Failure> {
    write_files(dir, &bundle_contents(roots))
}

/// Writes files into a directory, each atomically; gives their names.
pub(crate) fn write_files(dir: &Path, contents: &[Content]) -> Result<Vec<String>, Failure> {
    let failed = |error: io::Error| Failure::refused(format!("cannot write to {}: {error}", dir.display()));
    fs::create_dir_all(dir).map_err(failed)?;
    let mut written = Vec::new();
    for content in contents {
        let temporary = dir.join(format!(".{}.{}", content.name, std::process::id()));
        let _ = fs::remove_file(&temporary);
        write_new(&temporary, content)
            .and_then(|()| fs::rename(&temporary, dir.join(&content.name)))
            .map_err(failed)?;
        written.push(content.name.clone());
    }
    Ok(written)
}

fn write_new(path: &Path, content: &Content) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(content.mode).open(path)?;
    // The umask may have narrowed a public file's mode.
    file.set_permissions(fs::Permissions::from_mode(content.mode))?;
    file.write_all(&content.bytes)
}

/// A directory whose files change all together: each is a link through `..data`, which is one link to
/// the present version's directory. A reader that opens the chain and then the key finds a pair.
#[derive(Debug)]
pub(crate) struct LinkedDir {
    path: PathBuf,
    version: u64,
}

const DATA: &str = "..data";

impl LinkedDir {
    /// Uses `path`, made with mode 0700 where it does not exist.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::refused(format!("cannot use {}: {error}", path.display()));
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let found = fs::symlink_metadata(path).map_err(failed)?;
                if !found.is_dir() {
                    return Err(Failure::usage(format!("{} is no directory", path.display())));
                }
            }
            made => made.map_err(|error| failed(error).remedy("its parent must exist and be writable"))?,
        }
        Ok(Self { path: path.to_owned(), version: 0 })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether anybody but its owner can enter it, or the owner is somebody else.
    pub(crate) fn is_private(&self) -> io::Result<bool> {
        let found = fs::metadata(&self.path)?;
        Ok(found.mode() & 0o077 == 0 && found.uid() == rustix::process::geteuid().as_raw())
    }

    /// Whether what is written here stays in memory: tmpfs or ramfs. (The pages of a tmpfs may be swapped.)
    pub(crate) fn is_memory(&self) -> io::Result<bool> {
        is_memory(&self.path)
    }

    /// Replaces everything by `contents`, at once.
    pub(crate) fn publish(&mut self, contents: &[Content]) -> Result<(), Failure> {
        self.try_publish(contents)
            .map_err(|error| Failure::refused(format!("cannot write to {}: {error}", self.path.display())))
    }

    fn try_publish(&mut self, contents: &[Content]) -> io::Result<()> {
        let mode = fs::metadata(&self.path)?.mode() & 0o777;
        let old = fs::read_link(self.path.join(DATA)).ok();
        let name = self.fresh(mode)?;
        let version = self.path.join(&name);
        for content in contents {
            write_new(&version.join(&content.name), content)?;
        }
        self.link(Path::new(&name), DATA)?;
        for content in contents {
            let target = Path::new(DATA).join(&content.name);
            let here = self.path.join(&content.name);
            if fs::read_link(&here).ok().as_deref() != Some(&target) {
                self.link(&target, &content.name)?;
            }
        }
        match old {
            Some(old) => self.forget(&old, contents),
            None => Ok(()),
        }
    }

    /// A new version's directory. Counted, since a clock may stand still or go back.
    fn fresh(&mut self, mode: u32) -> io::Result<String> {
        loop {
            self.version += 1;
            let name = format!("..v{}-{}", std::process::id(), self.version);
            match DirBuilder::new().mode(mode).create(self.path.join(&name)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| name),
            }
        }
    }

    fn link(&self, target: &Path, name: &str) -> io::Result<()> {
        let temporary = self.path.join(format!("..tmp-{}", std::process::id()));
        let _ = fs::remove_file(&temporary);
        symlink(target, &temporary)?;
        fs::rename(&temporary, self.path.join(name))
    }

    /// Removes the version before this one, and links to files that are no more.
    fn forget(&self, old: &Path, contents: &[Content]) -> io::Result<()> {
        let is_ours = old.components().count() == 1 && old.to_string_lossy().starts_with("..v");
        if !is_ours {
            return Ok(());
        }
        for entry in fs::read_dir(self.path.join(old)).into_iter().flatten() {
            let name = entry?.file_name();
            if !contents.iter().any(|content| *content.name == *name) {
                let _ = fs::remove_file(self.path.join(&name));
            }
        }
        fs::remove_dir_all(self.path.join(old))
    }

    /// Removes the directory and all that is in it.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.path)
    }
}

/// Whether this path lies on tmpfs or ramfs.
pub(crate) fn is_memory(path: &Path) -> io::Result<bool> {
    // From linux/magic.h.
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    let found = rustix::fs::statfs(path)?;
    Ok([TMPFS, RAMFS].contains(&(found.f_type as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(name: &str, text: &str) -> Content {
        Content::new(name, PUBLIC, text.as_bytes().to_vec())
    }

    #[test]
    fn versions_replace_each_other_whole() {
        let parent = tempfile::tempdir().unwrap();
        let mut dir = LinkedDir::open(&parent.path().join("id")).unwrap();
        assert!(dir.is_private().unwrap());
        dir.publish(&[content("a", "1"), Content::new("key", PRIVATE, b"k".to_vec())]).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "1");
        assert_eq!(fs::metadata(dir.path().join("key")).unwrap().mode() & 0o777, PRIVATE);
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().mode() & 0o777, PUBLIC);
        dir.publish(&[content("a", "2")]).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "2");
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left.len(), 3, "the old version and its links are gone: {left:?}");
        // Another process takes the directory over.
        let mut again = LinkedDir::open(dir.path()).unwrap();
        again.publish(&[content("a", "3")]).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "3");
        dir.remove().unwrap();
        assert!(!dir.path().exists());
    }

    #[test]
    fn keys_are_written_as_others_write_them() {
        for len in [1, 47, 48, 49, 138, 1_000] {
            let der: Vec<u8> = (0..len).map(|n: u32| n as u8).collect();
            let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
            let expected = pem::encode_config(&pem::Pem::new("PRIVATE KEY", der.clone()), config);
            let content = key_content("key.pem", &der);
            assert_eq!(std::str::from_utf8(&content.bytes).unwrap(), expected);
            assert!(content.bytes.len() <= der.len() * 2 + 256, "it was not moved while it grew");
        }
    }

    #[test]
    fn a_file_or_a_shared_directory_is_seen_as_such() {
        let parent = tempfile::tempdir().unwrap();
        let file = parent.path().join("f");
        fs::write(&file, "x").unwrap();
        assert!(LinkedDir::open(&file).is_err());
        let shared = parent.path().join("d");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(!LinkedDir::open(&shared).unwrap().is_private().unwrap());
    }

    #[test]
    fn a_link_that_is_not_ours_is_not_followed_out() {
        let parent = tempfile::tempdir().unwrap();
        let elsewhere = parent.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("precious"), "x").unwrap();
        let mut dir = LinkedDir::open(&parent.path().join("id")).unwrap();
        symlink("../elsewhere", dir.path().join(DATA)).unwrap();
        dir.publish(&[content("a", "1")]).unwrap();
        assert!(elsewhere.join("precious").exists());
    }

    #[test]
    fn bundles_name_the_way_to_trust() {
        let roots: Roots = [(Tier::Foundation, vec![vec![1]]), (Tier::Enterprise, vec![vec![2], vec![3]])]
            .into_iter()
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let written = write_bundles(dir.path(), &roots).unwrap();
        let expected = [
            "bundle.pem",
            "tier-foundation.pem",
            "at-least-foundation.pem",
            "tier-enterprise.pem",
            "at-least-enterprise.pem",
        ];
        assert_eq!(written, expected);
        let blocks = |name| fs::read_to_string(dir.path().join(name)).unwrap().matches("BEGIN").count();
        assert_eq!((blocks("bundle.pem"), blocks("at-least-enterprise.pem")), (3, 2));
    }
}
