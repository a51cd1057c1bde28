// RFC 5280 path validation by the JDK: usage `java Validate.java DIRECTORY`.
// For each demanded tier and each leaf, against the roots that such a relying party trusts; then the same
// with all roots trusted and the tier's policy demanded explicitly.
import java.io.FileInputStream;
import java.nio.file.Path;
import java.security.cert.*;
import java.util.*;

public class Validate {
    static final String[] TIERS = {"foundation", "enterprise", "advanced"};

    static List<X509Certificate> load(Path file) throws Exception {
        try (var in = new FileInputStream(file.toFile())) {
            var found = new ArrayList<X509Certificate>();
            for (var c : CertificateFactory.getInstance("X.509").generateCertificates(in)) {
                found.add((X509Certificate) c);
            }
            return found;
        }
    }

    static String validate(Path dir, String roots, String leaf, String issuing, String policy) {
        try {
            var anchors = new HashSet<TrustAnchor>();
            for (var root : load(dir.resolve(roots))) anchors.add(new TrustAnchor(root, null));
            var params = new PKIXParameters(anchors);
            params.setRevocationEnabled(false);
            if (policy != null) {
                params.setExplicitPolicyRequired(true);
                params.setInitialPolicies(Set.of(policy));
            }
            var chain = new ArrayList<>(load(dir.resolve(leaf)));
            chain.addAll(load(dir.resolve(issuing)));
            var path = CertificateFactory.getInstance("X.509").generateCertPath(chain);
            CertPathValidator.getInstance("PKIX").validate(path, params);
            return "accept";
        } catch (Exception e) {
            return "refuse " + e.getMessage();
        }
    }

    public static void main(String[] args) throws Exception {
        var dir = Path.of(args[0]);
        for (int i = 0; i < TIERS.length; i++) {
            var policy = "1.3.6.1.4.1.32473.1." + (i + 1);
            for (var leaf : TIERS) {
                var cert = "leaf-" + leaf + ".pem";
                var ca = "issuing-" + leaf + ".pem";
                System.out.println("roots " + TIERS[i] + " " + leaf + " " + validate(dir, "roots-" + TIERS[i] + ".pem", cert, ca, null));
                System.out.println("policy " + TIERS[i] + " " + leaf + " " + validate(dir, "roots-foundation.pem", cert, ca, policy));
            }
            System.out.println("policy " + TIERS[i] + " forged " + validate(dir, "roots-foundation.pem", "forged.pem", "issuing-foundation.pem", policy));
        }
    }
}
