import java.io.IOException;
import java.net.ConnectException;
import java.net.Socket;
import java.nio.file.Files;
import java.nio.file.Path;

/** Connections to a server and to a port where nobody listens; then says what it saw. */
class Client {
    public static void main(String[] args) throws IOException {
        int server = Integer.parseInt(args[0]);
        int closed = Integer.parseInt(args[1]);
        int count = Integer.parseInt(args[2]);
        int refused = 0;
        for (int made = 0; made < count; made++) {
            try (Socket socket = new Socket("127.0.0.1", server)) {
                socket.getOutputStream().write("GET / HTTP/1.0\r\n\r\n".getBytes());
                if (socket.getInputStream().readAllBytes().length == 0) {
                    throw new IOException("no answer");
                }
            }
            if (made % 8 == 0) {
                try (Socket socket = new Socket("127.0.0.1", closed)) {
                    throw new IOException("somebody listens");
                } catch (ConnectException expected) {
                    refused++;
                }
            }
        }
        String comm = Files.readString(Path.of("/proc/thread-self/comm")).trim();
        long pid = ProcessHandle.current().pid();
        Files.writeString(
            Path.of(args[3]), "{\"pid\":" + pid + ",\"comm\":\"" + comm + "\",\"refused\":" + refused + "}");
        System.exit(5);
    }
}
