use proptest::prelude::*;

use super::*;

mod reader;
mod witness;

fn leaves(n: u64) -> impl Iterator<Item = Hash> {
    (0..n).map(|i| leaf_hash(format!("entry {i}").as_bytes()))
}

/// RFC 6962 section 2.1 to the letter.
fn naive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => tlog_tiles::EMPTY_HASH,
        [leaf] => *leaf,
        _ => {
            let split = (leaves.len().next_power_of_two()) / 2;
            tlog_tiles::node_hash(naive_root(&leaves[..split]), naive_root(&leaves[split..]))
        }
    }
}

/// A log with all its tiles, as one who serves it has them.
struct Log {
    tree: Tree,
    tiles: Tiles,
}

impl Log {
    fn of(n: u64) -> Self {
        let (mut tree, mut tiles) = (Tree::new(), Tiles::new());
        for leaf in leaves(n) {
            for FullTile { id, hashes, root } in tree.append(leaf) {
                assert_eq!(
                    root,
                    naive_root(&hashes.chunks(32).map(|h| Hash(h.try_into().unwrap())).collect::<Vec<_>>())
                );
                tiles.insert(id, hashes);
            }
        }
        for (id, hashes) in (0..tree.levels()).filter_map(|level| tree.partial(level)) {
            tiles.insert(id, hashes.to_vec());
        }
        Self { tree, tiles }
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint { size: self.tree.size(), root: self.tree.root() }
    }

    fn wanted(&self, ids: &[TileId]) -> Tiles {
        ids.iter().map(|id| (*id, self.tiles[id].clone())).collect()
    }
}

#[test]
fn roots_are_those_of_certificate_transparency() {
    // The reference tree of RFC 6962's implementations.
    let entries =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    let roots = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];
    let mut tree = Tree::new();
    assert_eq!(
        hex::encode(tree.root().0),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    for (entry, root) in entries.iter().zip(roots) {
        tree.append(leaf_hash(&hex::decode(entry).unwrap()));
        assert_eq!(hex::encode(tree.root().0), root);
    }
}

#[test]
fn paths_are_those_of_the_specification() {
    let id = |level, number| TileId { level, number };
    assert_eq!(id(0, 0).path(256), "tile/0/000");
    assert_eq!(id(0, 1_234_067).path(256), "tile/0/x001/x234/067");
    assert_eq!(id(1, 273).path(112), "tile/1/273.p/112");
    assert_eq!(bundle_path(1_234_067, 8), "tile/entries/x001/x234/067.p/8");
    assert_eq!(bundle_path(5, 256), "tile/entries/005");
    // The specification's example: a tree of 70,000 entries.
    let width = |level, number| id(level, number).width_in(70_000);
    assert_eq!((width(0, 272), width(0, 273), width(0, 274)), (256, 112, 0));
    assert_eq!((width(1, 0), width(1, 1), width(2, 0), width(3, 0), width(63, 0)), (256, 17, 1, 0, 0));
}

#[test]
fn a_tree_of_many_tiles() {
    let log = Log::of(70_000);
    let all: Vec<Hash> = leaves(70_000).collect();
    assert_eq!(log.tree.root(), naive_root(&all));
    let checkpoint = log.checkpoint();
    for index in [0, 255, 256, 65_535, 65_536, 69_887, 69_888, 69_999] {
        let needed = inclusion_tiles(70_000, index).unwrap();
        assert!(needed.len() <= 6, "{needed:?}");
        let leaf = all[index as usize];
        let proof = prove_inclusion(&checkpoint, index, leaf, &log.wanted(&needed)).unwrap();
        check_inclusion(&checkpoint, index, leaf, &proof).unwrap();
        assert_eq!(
            check_inclusion(&checkpoint, index, all[index as usize ^ 1], &proof),
            Err(ProofError::Wrong)
        );
    }
    for old in [1, 256, 300, 65_536, 69_999, 70_000] {
        let before = Checkpoint { size: old, root: naive_root(&all[..old as usize]) };
        let needed = consistency_tiles(70_000, old).unwrap();
        let proof = prove_consistency(&checkpoint, &before, &log.wanted(&needed)).unwrap();
        check_consistency(&checkpoint, &before, &proof).unwrap();
    }
    // What a restart reads.
    let edge = Tree::edge_of(70_000);
    assert_eq!(edge, [(0, 273), (1, 1), (2, 0)].map(|(level, number)| TileId { level, number }));
    let loaded = Tree::load(70_000, |id| log.tiles[&id].clone()).unwrap();
    assert_eq!(loaded, log.tree);
    assert!(matches!(
        Tree::load(70_001, |id| log.tiles[&id].clone()),
        Err(TreeError::Width { level: 0, expected: 3616, found: 3584, .. })
    ));
}

#[test]
fn proofs_beyond_the_tree() {
    let log = Log::of(5);
    let checkpoint = log.checkpoint();
    assert_eq!(inclusion_tiles(5, 5), Err(ProofError::NotInTree { index: 5, size: 5 }));
    assert_eq!(
        prove_inclusion(&checkpoint, 5, Hash::default(), &log.tiles),
        Err(ProofError::NotInTree { index: 5, size: 5 })
    );
    assert_eq!(consistency_tiles(5, 6), Err(ProofError::Sizes { old: 6, new: 5 }));
    assert_eq!(consistency_tiles(5, 0), Err(ProofError::Sizes { old: 0, new: 5 }));
    let hash = Hash::default();
    assert_eq!(
        check_inclusion(&checkpoint, 0, hash, &vec![hash; 66]),
        Err(ProofError::TooLong { found: 66 })
    );
    assert_eq!(
        prove_inclusion(&checkpoint, 0, hash, &Tiles::new()),
        Err(ProofError::Tile { level: 0, number: 0 })
    );
}

#[test]
fn a_tile_that_was_changed_proves_nothing() {
    // Of 623 entries: one tile holds several parts of the root, and the tile in question is none of them.
    let mut log = Log::of(623);
    let (checkpoint, leaf) = (log.checkpoint(), leaf_hash(b"entry 0"));
    prove_inclusion(&checkpoint, 0, leaf, &log.tiles).unwrap();
    log.tiles.get_mut(&TileId { level: 0, number: 0 }).unwrap()[32] ^= 1;
    assert_eq!(prove_inclusion(&checkpoint, 0, leaf, &log.tiles), Err(ProofError::Tampered));
    let old = Checkpoint { size: 1, root: leaf };
    assert_eq!(prove_consistency(&checkpoint, &old, &log.tiles), Err(ProofError::Tampered));
}

proptest! {
    #[test]
    fn any_tree_and_its_proofs(n in 1_u64..1200, at in any::<prop::sample::Index>(), flip in any::<u32>()) {
        let log = Log::of(n);
        let all: Vec<Hash> = leaves(n).collect();
        prop_assert_eq!(log.tree.root(), naive_root(&all));
        prop_assert_eq!(&Tree::load(n, |id| log.tiles[&id].clone()).unwrap(), &log.tree);
        let checkpoint = log.checkpoint();
        let index = at.index(all.len()) as u64;
        let leaf = all[index as usize];
        let needed = inclusion_tiles(n, index).unwrap();
        let mut tiles = log.wanted(&needed);
        let proof = prove_inclusion(&checkpoint, index, leaf, &tiles).unwrap();
        check_inclusion(&checkpoint, index, leaf, &proof).unwrap();

        let old = Checkpoint { size: index + 1, root: naive_root(&all[..=index as usize]) };
        let tree_proof = prove_consistency(&checkpoint, &old, &log.tiles).unwrap();
        check_consistency(&checkpoint, &old, &tree_proof).unwrap();

        // One bit of anything that is looked at, and nothing holds.
        let bit = |hash: &mut Hash| hash.0[flip as usize % 32] ^= 1 << (flip % 8);
        for i in 0..proof.len() {
            let mut forged = proof.clone();
            bit(&mut forged[i]);
            prop_assert_eq!(check_inclusion(&checkpoint, index, leaf, &forged), Err(ProofError::Wrong));
        }
        for i in 0..tree_proof.len() {
            let mut forged = tree_proof.clone();
            bit(&mut forged[i]);
            prop_assert_eq!(check_consistency(&checkpoint, &old, &forged), Err(ProofError::Wrong));
        }
        let mut other = old;
        bit(&mut other.root);
        prop_assert!(check_consistency(&checkpoint, &other, &tree_proof).is_err());
        // A changed tile gives no proof, or, where the change is in what the proof leaves out, the right one.
        if let Some(tile) = tiles.values_mut().next() {
            let place = flip as usize % tile.len();
            tile[place] ^= 1;
            match prove_inclusion(&checkpoint, index, leaf, &tiles) {
                Ok(same) => prop_assert_eq!(same, proof),
                Err(error) => prop_assert_eq!(error, ProofError::Tampered),
            }
        }
    }

    #[test]
    fn any_bundle(entries in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20)) {
        let written = bundle(entries.iter().map(Vec::as_slice)).unwrap();
        prop_assert_eq!(read_bundle(&written, entries.len()).unwrap(), entries.clone());
        prop_assert!(read_bundle(&written, entries.len() + 1).is_err());
        if !written.is_empty() {
            prop_assert!(read_bundle(&written[..written.len() - 1], entries.len()).is_err());
        }
    }
}

#[test]
fn an_entry_that_its_length_cannot_say() {
    let long = vec![0; MAX_ENTRY + 1];
    assert_eq!(bundle([long.as_slice()]), Err(BundleError::TooLong { found: MAX_ENTRY + 1 }));
    assert!(bundle([&long[1..]]).is_ok());
    assert_eq!(read_bundle(&[0], 1), Err(BundleError::Truncated { entry: 0 }));
    assert_eq!(read_bundle(&[0, 0, 0, 2, 1], 2), Err(BundleError::Truncated { entry: 1 }));
}

fn signer() -> (SoftwareLogKey, LogVerifier) {
    let key = SoftwareLogKey::from_seed(&[7; 32]).unwrap();
    let verifier = LogVerifier::new("log.example.org/issuer-1".parse().unwrap(), key.public());
    (key, verifier)
}

#[test]
fn a_checkpoint_is_its_logs_or_counts_for_nothing() {
    let (key, verifier) = signer();
    let checkpoint = Log::of(300).checkpoint();
    let signed = sign_checkpoint(&verifier, &key, &checkpoint).unwrap();
    assert_eq!(open_checkpoint(&signed, &verifier), Ok(checkpoint));
    let text = String::from_utf8(signed.clone()).unwrap();
    assert!(text.starts_with("log.example.org/issuer-1\n300\n"), "{text}");

    for place in 0..signed.len() {
        for bit in 0..8 {
            let mut forged = signed.clone();
            forged[place] ^= 1 << bit;
            assert!(open_checkpoint(&forged, &verifier).is_err(), "byte {place}, bit {bit}");
        }
    }
    for end in 0..signed.len() {
        assert!(open_checkpoint(&signed[..end], &verifier).is_err(), "cut to {end}");
    }
    let other = SoftwareLogKey::from_seed(&[8; 32]).unwrap();
    let stranger = LogVerifier::new(verifier.name().clone(), other.public());
    assert!(matches!(open_checkpoint(&signed, &stranger), Err(CheckpointError::Unsigned { .. })));
    let elsewhere = LogVerifier::new("log.example.org/issuer-2".parse().unwrap(), key.public());
    assert!(matches!(open_checkpoint(&signed, &elsewhere), Err(CheckpointError::Unsigned { .. })));
    // Another key than the log's signs nothing.
    assert!(sign_checkpoint(&stranger, &key, &checkpoint).is_err());
    assert_eq!(
        open_checkpoint(&vec![b'x'; MAX_CHECKPOINT + 1], &verifier),
        Err(CheckpointError::TooLong { found: MAX_CHECKPOINT + 1 })
    );
}

#[test]
fn what_the_logs_key_signed_for_another_purpose_is_no_checkpoint() {
    let (key, verifier) = signer();
    let note = |text: &[u8]| {
        let signature = key.sign(text).unwrap();
        let signature =
            signed_note::Signature::new(verifier.name().to_string(), verifier.id(), signature).unwrap();
        signed_note::Note::new(text, &[signature]).unwrap().to_bytes()
    };
    let root = leaf_hash(b"").to_string();
    let name = verifier.name();
    let open = |text: String| open_checkpoint(&note(text.as_bytes()), &verifier);
    assert!(open(format!("{name}\n1\n{root}\n")).is_ok());
    assert!(open(format!("{name}\n1\n{root}\nan extension\n")).is_ok());
    for text in [
        format!("{name}\n01\n{root}\n"),
        format!("{name}\n-1\n{root}\n"),
        format!("{name}\n1\n{}\n", &root[4..]),
        format!("{name}\n{root}\n"),
        "words\n".to_owned(),
    ] {
        assert_eq!(open(text.clone()), Err(CheckpointError::Text), "{text:?}");
    }
    let other = format!("log.example.org/other\n1\n{root}\n");
    assert!(matches!(open(other), Err(CheckpointError::Origin { .. })));
}

#[test]
fn a_kept_proof_shows_its_entry_and_no_other() {
    let files = Files::of(&entries(300));
    let (log, verifier) = (Log::of(300), signer().1);
    let proof = prove_inclusion(&files.checkpoint(), 77, leaf_hash(b"entry 77"), &log.tiles).unwrap();
    let text = write_proof(77, &proof, &files.0["checkpoint"]);
    assert!(text.starts_with(b"c2sp.org/tlog-proof@v1\nindex 77\n"));
    assert_eq!(check_proof(&text, b"entry 77", &verifier), Ok((77, files.checkpoint())));
    assert!(matches!(check_proof(&text, b"entry 78", &verifier), Err(KeptProofError::Proof(_))));
    let said = String::from_utf8(text.clone()).unwrap();
    let extra = said.replace("index 77", "extra aGVsbG8=\nindex 77");
    assert!(check_proof(extra.as_bytes(), b"entry 77", &verifier).is_ok());
    for (from, to) in
        [("index 77", "index 077"), ("index 77", "index 78"), ("@v1", "@v2"), ("=\n", "\n"), ("\n\n", "\n")]
    {
        let forged = said.replacen(from, to, 1);
        assert!(check_proof(forged.as_bytes(), b"entry 77", &verifier).is_err(), "{from:?} for {to:?}");
    }
    for place in 0..text.len() {
        let mut forged = text.clone();
        forged[place] ^= 1;
        assert!(check_proof(&forged, b"entry 77", &verifier).is_err(), "byte {place}");
    }
}

#[test]
fn what_changes_from_one_checkpoint_to_the_next() {
    let id = |(level, number)| TileId { level, number };
    assert_eq!(changed_tiles(300, 300), []);
    assert_eq!(changed_tiles(300, 301), [(0, 1)].map(id));
    assert_eq!(changed_tiles(300, 600), [(0, 1), (0, 2), (1, 0)].map(id));
}

#[test]
fn the_specifications_note_verifies() {
    // c2sp.org/signed-note, "Format" and "Verifier keys".
    let verifier: LogVerifier =
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".parse().unwrap();
    assert_eq!(verifier.to_string(), "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW");
    let note = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n\
                — PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    assert_eq!(
        open_checkpoint(note.as_bytes(), &verifier),
        Err(CheckpointError::Text),
        "signed, and no checkpoint"
    );
    let forged = note.replace("answer", "Answer");
    assert!(matches!(open_checkpoint(forged.as_bytes(), &verifier), Err(CheckpointError::Forged { .. })));
}

#[test]
fn verifier_keys_that_are_none() {
    let parse = |text: &str| text.parse::<LogVerifier>().unwrap_err();
    let key = "ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    assert_eq!(parse("PeterNeumann"), VerifierError::Form);
    assert_eq!(parse(&format!("PeterNeumann+C74F20A3+{key}")), VerifierError::Form);
    assert_eq!(parse(&format!("PeterNeumann+c74f20a+{key}")), VerifierError::Form);
    assert_eq!(parse(&format!("PeterNeumann++74f20a3+{key}")), VerifierError::Form);
    assert_eq!(parse("PeterNeumann+c74f20a3+ARpc"), VerifierError::Form);
    assert_eq!(parse("PeterNeumann+c74f20a3+"), VerifierError::Form);
    assert_eq!(parse(&format!("Peter Neumann+c74f20a3+{key}")), VerifierError::Name);
    assert_eq!(parse(&format!("+c74f20a3+{key}")), VerifierError::Name);
    assert_eq!(
        parse(&format!("PeterNeumann+c74f20a4+{key}")),
        VerifierError::Id { expected: 0xc74f_20a3, found: 0xc74f_20a4 }
    );
    let other = format!("B{}", &key[1..]);
    assert!(matches!(parse(&format!("PeterNeumann+c74f20a3+{other}")), VerifierError::Algorithm { .. }));
    assert!("a\nb".parse::<LogName>().is_err() && "a+b".parse::<LogName>().is_err());
    assert!("x".repeat(256).parse::<LogName>().is_err());
}

/// A log as it is served: every path, and what is there.
#[derive(Clone)]
struct Files(std::collections::BTreeMap<String, Vec<u8>>);

impl Files {
    fn of(entries: &[Vec<u8>]) -> Self {
        let (mut tree, mut files) = (Tree::new(), std::collections::BTreeMap::new());
        for (number, chunk) in entries.chunks(256).enumerate() {
            let width = u16::try_from(chunk.len()).unwrap();
            let bundle = bundle(chunk.iter().map(Vec::as_slice)).unwrap();
            files.insert(bundle_path(number as u64, width), bundle);
            for entry in chunk {
                for tile in tree.append(leaf_hash(entry)) {
                    files.insert(tile.id.path(256), tile.hashes);
                }
            }
        }
        for (id, hashes) in (0..tree.levels()).filter_map(|level| tree.partial(level)) {
            files.insert(id.path(id.width_in(tree.size())), hashes.to_vec());
        }
        let (key, verifier) = signer();
        let checkpoint = Checkpoint { size: tree.size(), root: tree.root() };
        files.insert("checkpoint".to_owned(), sign_checkpoint(&verifier, &key, &checkpoint).unwrap());
        Self(files)
    }

    fn audit(&self, since: Option<&Checkpoint>) -> Result<Checkpoint, AuditError> {
        let mut served = |path: &str| self.0.get(path).cloned().ok_or_else(|| "not there".to_owned());
        audit(&mut served, &signer().1, since, &mut |_, _| Ok(()))
    }

    fn served(&self) -> impl FnMut(&str) -> Result<Vec<u8>, String> + '_ {
        |path| self.0.get(path).cloned().ok_or_else(|| "not there".to_owned())
    }

    fn checkpoint(&self) -> Checkpoint {
        open_checkpoint(&self.0["checkpoint"], &signer().1).unwrap()
    }
}

fn entries(n: usize) -> Vec<Vec<u8>> {
    (0..n).map(|i| format!("entry {i}").into_bytes()).collect()
}

#[test]
fn a_log_as_it_is_served_holds() {
    for n in [0, 1, 255, 256, 257, 600, 66_000] {
        let files = Files::of(&entries(n));
        assert_eq!(files.audit(None), Ok(files.checkpoint()), "{n}");
    }
    let mut seen = Vec::new();
    let files = Files::of(&entries(300));
    let mut served = |path: &str| Ok(files.0[path].clone());
    let mut show = |index: u64, entry: &[u8]| {
        seen.push((index, entry.to_vec()));
        if index == 299 { Err("looked at".to_owned()) } else { Ok(()) }
    };
    let found = audit(&mut served, &signer().1, None, &mut show);
    assert_eq!(found, Err(AuditError::Content { index: 299, why: "looked at".to_owned() }));
    assert!(seen.into_iter().map(|(_, entry)| entry).eq(entries(300)));
}

#[test]
fn partial_tiles_that_are_full_by_now() {
    let (then, now) = (Files::of(&entries(300)), Files::of(&entries(512)));
    let mut files = now.clone();
    files.0.insert("checkpoint".to_owned(), then.0["checkpoint"].clone());
    // The tile above is partial in both.
    files.0.extend(
        then.0.iter().filter(|(path, _)| path.starts_with("tile/1/")).map(|(p, t)| (p.clone(), t.clone())),
    );
    assert_eq!(files.audit(None), Ok(then.checkpoint()));
}

#[test]
fn what_contradicts_an_earlier_checkpoint_is_named() {
    let all = entries(700);
    let (then, now) = (Files::of(&all[..300]), Files::of(&all));
    assert_eq!(now.audit(Some(&then.checkpoint())), Ok(now.checkpoint()));
    assert_eq!(now.audit(Some(&now.checkpoint())), Ok(now.checkpoint()));
    assert_eq!(now.audit(Some(&Files::of(&[]).checkpoint())), Ok(now.checkpoint()));
    assert_eq!(then.audit(Some(&now.checkpoint())), Err(AuditError::RolledBack { then: 700, now: 300 }));
    let mut other = all.clone();
    other[5] = b"another".to_vec();
    let other = Files::of(&other[..300]).checkpoint();
    assert_eq!(now.audit(Some(&other)), Err(AuditError::Forked { size: 300 }));
}

#[test]
fn whoever_rewrites_entries_and_tiles_still_lacks_the_signature() {
    let mut all = entries(600);
    let honest = Files::of(&all);
    let rewritten = |all: &[Vec<u8>]| {
        let mut files = Files::of(all);
        files.0.insert("checkpoint".to_owned(), honest.0["checkpoint"].clone());
        files.audit(None)
    };
    all.swap(3, 4);
    assert_eq!(rewritten(&all), Err(AuditError::Rewritten { size: 600 }));
    all.swap(3, 4);
    all[599] = b"another".to_vec();
    assert_eq!(rewritten(&all), Err(AuditError::Rewritten { size: 600 }));
    all.remove(77);
    assert!(matches!(rewritten(&all), Err(AuditError::Unserved { .. })));
}

proptest! {
    #[test]
    fn any_byte_changed_anywhere_is_found_and_named(
        n in 1_usize..700,
        file in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        bit in 0_u32..8,
    ) {
        let mut files = Files::of(&entries(n));
        let paths: Vec<String> = files.0.keys().cloned().collect();
        let path = &paths[file.index(paths.len())];
        let bytes = files.0.get_mut(path).unwrap();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        let error = files.audit(None).unwrap_err();
        match error {
            AuditError::Checkpoint(_) => prop_assert_eq!(path, "checkpoint"),
            AuditError::Bundle { path: named, .. } | AuditError::Tile { path: named, .. } => {
                prop_assert_eq!(&named, path);
            }
            AuditError::Entry { bundle, tile, .. } => prop_assert!([&bundle, &tile].contains(&path)),
            other => prop_assert!(false, "{path}: {other}"),
        }
    }

    #[test]
    fn any_file_gone_or_cut_is_named(n in 1_usize..700, file in any::<prop::sample::Index>(), cut in 1_usize..33) {
        let files = Files::of(&entries(n));
        let paths: Vec<String> = files.0.keys().cloned().collect();
        let path = &paths[file.index(paths.len())];
        let mut gone = files.clone();
        gone.0.remove(path);
        let error = gone.audit(None).unwrap_err();
        prop_assert!(error.to_string().contains(path.as_str()), "{path}: {error}");
        let mut short = files.clone();
        let bytes = short.0.get_mut(path).unwrap();
        bytes.truncate(bytes.len().saturating_sub(cut));
        let error = short.audit(None).unwrap_err();
        prop_assert!(error.to_string().contains(path.as_str()), "{path}: {error}");
    }
}
